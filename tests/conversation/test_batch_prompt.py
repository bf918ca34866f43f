"""Rows that begin after a prompt: each equals its session alone, and the others notice nothing."""

import mlx.core as mx
import numpy as np
import personaplex
import pytest
from batching import addresses, check_equal, rings, sound
from helpers import GOLDENS, GREEDY, golden
from personaplex import DELAY_2, SIZES, STUB

import moshi_mlx
from moshi_mlx import InputError, MimiConfig, MoshiConfig, MoshiDepthConfig, MoshiForConditionalGeneration
from moshi_mlx.conversation import prompt as prompts

pytestmark = pytest.mark.slow

VOICE = golden("personaplex")["voice"]
PERSONA = mx.load(str(GOLDENS / "personaplex.safetensors"), return_metadata=True)[1]["persona"]
KINDS = [GREEDY, {"temperature": 1.1, "top_k": 5, "text_top_k": 3, "top_p": 0.9}]
DELAYS = {"delay 1": SIZES, "delay 2": DELAY_2}


@pytest.fixture(scope="module", params=DELAYS)
def plex(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("personaplex") / "model"
    sizes = DELAYS[request.param]
    return moshi_mlx.load(personaplex.write(folder, STUB | sizes, sizes))


@pytest.fixture(scope="module")
def prompt(plex):
    return plex.prompt(voice=VOICE, persona=PERSONA)


def batch_of(plex, slots, capacities=(90,)):
    batch = plex.batch(slots)
    batch._capacities = list(capacities)
    batch._begin()
    return batch


def alone(plex, frames, **given):
    session = plex.session(**given)
    return [session.step(frame) for frame in frames]


def go(batch, heard, frames):
    """One step of each of {row: its sound so far}."""
    for row, frame in batch.step({row: frames[row][len(heard[row])] for row in heard}).items():
        heard[row].append(frame)


@pytest.mark.parametrize("kind", [0, 1], ids=["greedy", "sampled"])
@pytest.mark.parametrize("first", [8, 64, 90], ids=["rings smaller", "rings about as large", "rings larger"])
def test_a_row_after_a_prompt_equals_its_session(plex, prompt, kind, first):
    """It comes late, into a batch where others speak, and stays until its context is full."""
    assert 8 < prompt.length < 90
    batch = batch_of(plex, 3, [size for size in (8, 16, 32, 64, 90) if size >= first])
    plain = batch.join(seed=1)
    heard, frames = {plain: []}, {plain: sound(1, 60)}
    for _ in range(3):
        go(batch, heard, frames)
    late = batch.join(seed=2, prompt=prompt, **KINDS[kind])
    assert late.primed
    assert late.positions == prompt.length
    heard[late], frames[late] = [], sound(2, 50)
    for _ in range(2):
        go(batch, heard, frames)
    later = batch.join(seed=3, prompt=prompt)
    heard[later], frames[later] = [], sound(3, 40)
    for _ in range(40):
        go(batch, heard, frames)
    check_equal(heard[plain], alone(plex, frames[plain][:45], seed=1))
    check_equal(heard[late], alone(plex, frames[late][:42], seed=2, prompt=prompt, **KINDS[kind]))
    check_equal(heard[later], alone(plex, frames[later][:40], seed=3, prompt=prompt))


def test_a_slot_is_taken_over_with_and_without_a_prompt(plex, prompt):
    """Pauses in the first frames, where the prompt still speaks, lose nothing either."""
    batch = batch_of(plex, 2, (64, 90))
    stays = batch.join(seed=0)
    for seed, given in ((1, {"prompt": prompt}), (2, {}), (3, {"prompt": prompt})):
        row = batch.join(seed=seed, **given)
        heard = []
        for frame in sound(seed, 6):
            batch.step({stays: frame})
            heard.append(batch.step({row: frame})[row])
        check_equal(heard, alone(plex, sound(seed, 6), seed=seed, **given))
        batch.leave(row)


def test_joining_writes_one_row_in_place(plex, prompt):
    batch = batch_of(plex, 3)
    stays, pauses = batch.join(seed=0), batch.join(seed=1)
    for frame in sound(0, 4):
        batch.step({stays: frame, pauses: frame})
    where = addresses(batch)
    before = {name: np.array(ring) for name, ring in rings(batch._state).items()}
    row = batch.join(seed=2, prompt=prompt)
    assert addresses(batch) == where
    after = rings(batch._state)
    for name, ring in before.items():
        now = np.array(after[name])
        np.testing.assert_array_equal(now[: row._place], ring[: row._place])
        if name.startswith("temporal"):
            now, ring = (np.moveaxis(each[row._place], -2, 0) for each in (now, ring))  # slot by slot
            np.testing.assert_array_equal(now[prompt.length :], ring[prompt.length :])
            assert (now[: prompt.length] != ring[: prompt.length]).any()
    del after  # what is held on to is copied
    batch.step({row: sound(2, 1)[0]})
    assert addresses(batch) == where


def test_infinities_are_not_inherited_by_a_prompt(plex, prompt):
    batch = batch_of(plex, 1)
    row = batch.join(seed=0)
    batch.step({row: sound(0, 1)[0]})
    for ring in rings(batch._state).values():
        ring[row._place] = mx.nan
    batch.step({row: sound(0, 1)[0]})
    batch.leave(row)
    row = batch.join(seed=5, prompt=prompt)
    heard = [batch.step({row: frame})[row] for frame in sound(5, 5)]
    check_equal(heard, alone(plex, sound(5, 5), seed=5, prompt=prompt))


def test_what_cannot_be_is_named_and_takes_no_slot(plex, prompt):
    batch = plex.batch(1, context=prompt.length - 1)
    with pytest.raises(InputError, match=rf"^prompt: has {prompt.length} frames, but the context is"):
        batch.join(prompt=prompt)
    for bad in ("NATF2", 3, prompt._replace(hidden=mx.zeros((2, 24)))):
        with pytest.raises(InputError, match=r"^prompt: got"):
            batch.join(prompt=bad)
    assert batch.free == 1


@pytest.mark.parametrize("kv_bits", [8, 4])
def test_a_prompt_in_few_bits(kv_bits):
    codec = MimiConfig(num_filters=2, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                       codebook_size=32, codebook_dim=8, num_quantizers=8, sliding_window=24)  # fmt: skip
    depth = MoshiDepthConfig(vocab_size=64, audio_vocab_size=32, hidden_size=32, input_size=64, num_hidden_layers=1,
                             num_attention_heads=2, ffn_dim=64)  # fmt: skip
    config = MoshiConfig(vocab_size=64, audio_vocab_size=32, hidden_size=64, num_hidden_layers=2,
                         num_attention_heads=2, ffn_dim=128, sliding_window=30, audio_encoder_config=codec,
                         depth_decoder_config=depth)  # fmt: skip
    model = MoshiForConditionalGeneration(config)
    columns = np.random.default_rng(0).integers(0, 32, (1, 17, 9))
    prompt = prompts.prefill(model, prompts.Columns(columns, np.array([9])))
    batch = model.batch(2, kv_bits=kv_bits)
    batch.step({batch.join(): sound(0, 1)[0]})
    row = batch.join(seed=1, prompt=prompt, **GREEDY)
    frames = [batch.step({row: frame})[row] for frame in sound(1, 8)]
    check_equal(frames, alone(model, sound(1, 8), seed=1, prompt=prompt, kv_bits=kv_bits, **GREEDY))
