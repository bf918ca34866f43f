"""Conversations in one step: each equals itself alone, whoever joins, pauses, leaves or breaks beside it."""

import mlx.core as mx
import numpy as np
import pytest
from batching import addresses, check_equal, rings, sound
from helpers import GREEDY

import moshi_mlx
from moshi_mlx import InputError
from moshi_mlx.conversation.batch import state_bytes

KINDS = [
    {},
    GREEDY,
    {"temperature": 1.1, "top_k": 5, "text_top_k": 3, "top_p": 0.9, "text_min_p": 0.02},
    {"temperature": 0.6, "text_temperature": 0, "top_p": 0.5, "min_p": 0.1},
]
MINIATURE = "moshi_mlx/assets/miniature"


@pytest.fixture(scope="module")
def miniature():
    return moshi_mlx.load(MINIATURE, dtype=mx.float32)


class Alone:
    """What conversations say when nobody else is there. A session for each kind of settings, begun anew for each."""

    def __init__(self, model):
        self.model, self.sessions = model, {}

    def __call__(self, seed, kind, frames):
        if kind not in self.sessions:
            self.sessions[kind] = self.model.session(**KINDS[kind])
        session = self.sessions[kind]
        session._seed = seed
        session.reset()
        return [session.step(frame) for frame in frames]


class Crowd:
    """People who come, pause and go at random, and what each of them heard."""

    def __init__(self, batch, seed, longest):
        self.batch, self.random, self.longest = batch, np.random.default_rng(seed), longest
        self.here, self.heard, self.given, self.left = {}, {}, {}, {}

    def step(self):
        random = self.random
        if self.batch.free and (not self.here or random.random() < 0.2):
            person = len(self.heard)
            row = self.batch.join(seed=person, **KINDS[person % len(KINDS)])
            self.here[person], self.heard[person] = row, []
            self.left[person] = int(random.integers(1, self.longest))
            self.given[person] = sound(person, self.left[person])
        speaking = [person for person in self.here if random.random() < 0.8]
        frames = self.batch.step({self.here[p]: self.given[p][len(self.heard[p])] for p in speaking})
        for person in speaking:
            self.heard[person].append(frames[self.here[person]])
            if len(self.heard[person]) == self.left[person]:
                self.batch.leave(self.here.pop(person))

    def check(self, model):
        alone = Alone(model)
        for person, frames in self.heard.items():
            check_equal(frames, alone(person, person % len(KINDS), self.given[person][: len(frames)]))


def test_each_row_equals_its_session(model):
    crowd = Crowd(model.batch(3), seed=1, longest=40)
    for _ in range(60):
        crowd.step()
    assert len(crowd.heard) > 5
    crowd.check(model)


def test_each_row_of_the_miniature_equals_its_session(miniature):
    crowd = Crowd(miniature.batch(3), seed=2, longest=20)
    for _ in range(25):
        crowd.step()
    crowd.check(miniature)


@pytest.mark.slow
def test_eight_rows_for_2000_frames(model):
    crowd = Crowd(model.batch(8), seed=3, longest=400)
    for _ in range(2000):
        crowd.step()
    assert len(crowd.heard) > 40
    crowd.check(model)


def test_caches_grow_with_the_oldest_and_are_small_again_when_nobody_is_left(checkpoint):
    model = moshi_mlx.load(checkpoint(context=40), dtype=mx.float32)
    batch = small_batch(model)
    small = state_bytes(batch)
    first = batch.join(seed=0)
    heard = [batch.step({first: frame})[first] for frame in sound(0, 7)]  # with the priming position the ring is full
    second = batch.join(seed=1, **KINDS[1])
    others = []
    for ours, theirs in zip(sound(0, 60)[7:], sound(1, 53), strict=True):
        frames = batch.step({first: ours, second: theirs})
        heard.append(frames[first])
        others.append(frames[second])
    assert state_bytes(batch) > small
    alone = Alone(model)
    check_equal(heard, alone(0, 0, sound(0, 60)))
    check_equal(others, alone(1, 1, sound(1, 53)))
    batch.leave(first)
    batch.leave(second)
    third = batch.join(seed=2)
    assert state_bytes(batch) == small
    check_equal([batch.step({third: frame})[third] for frame in sound(2, 3)], alone(2, 0, sound(2, 3)))


def test_a_paused_row_at_a_full_ring_loses_nothing(checkpoint):
    """What a step writes for a paused row must not hit a key that it still needs, also where its ring is just full."""
    model = moshi_mlx.load(checkpoint(context=40), dtype=mx.float32)
    batch = small_batch(model)
    first, second = batch.join(seed=0), batch.join(seed=1)
    heard = []
    for i, frame in enumerate(sound(0, 20)):
        for other in sound(100 + i, 2):  # two frames of the second for each of the first
            batch.step({second: other})
        heard.append(batch.step({first: frame})[first])
    check_equal(heard, Alone(model)(0, 0, sound(0, 20)))


def small_batch(model):
    """Two rows whose caches begin with 8 slots."""
    batch = model.batch(2)
    batch._capacities = [8, 16, 32, 40]
    batch._begin()
    return batch


@pytest.mark.compiled
@pytest.mark.parametrize("name", ["moshi_tiny", "delay 2"])
def test_no_ring_is_copied(checkpoint, name):
    changes = {} if name == "moshi_tiny" else {"delays": [0] + ([0] + [2] * 7) * 2}
    model = moshi_mlx.load(checkpoint(**changes), dtype=mx.float32)
    batch = model.batch(4)
    stays = batch.join(seed=0)
    batch.step({stays: sound(0, 1)[0]})
    before, copied = addresses(batch), 0
    assert len(before) > 4
    for i, frame in enumerate(sound(1, 12)):
        if i == 3:
            guest = batch.join(seed=1)
        if i == 8:
            batch.leave(guest)
        batch.step({} if i == 5 else {stays: frame})
        after = addresses(batch)
        copied += sum(after[name] != before[name] for name in before)
        before = after
    assert copied == 0


def test_what_is_not_finite_stays_in_its_row(model):
    batch = model.batch(2)
    broken, whole = batch.join(seed=0), batch.join(seed=1)
    bad = sound(0, 10)
    bad[2], bad[4], bad[6] = np.nan, np.inf, 3e38
    heard = [batch.step({broken: ours, whole: theirs})[whole] for ours, theirs in zip(bad, sound(1, 10), strict=True)]
    assert broken.nonfinite_samples == 3 * 1920
    alone = Alone(model)
    check_equal(heard, alone(1, 0, sound(1, 10)))
    batch.leave(broken)
    following = batch.join(seed=5)
    check_equal([batch.step({following: frame})[following] for frame in sound(5, 8)], alone(5, 0, sound(5, 8)))


def test_a_broken_state_is_not_inherited(model):
    """Infinities in a ring would reach through the mask: 0 times NaN."""
    batch = model.batch(2)
    broken, whole = batch.join(seed=0), batch.join(seed=1)
    batch.step({broken: sound(0, 1)[0], whole: sound(1, 1)[0]})
    for ring in rings(batch._state).values():
        ring[broken._place] = mx.nan
    heard = [batch.step({broken: frame, whole: frame})[whole] for frame in sound(1, 6)[1:]]
    alone = Alone(model)
    check_equal(heard, alone(1, 0, sound(1, 6))[1:])
    batch.leave(broken)
    following = batch.join(seed=5)
    check_equal([batch.step({following: frame})[following] for frame in sound(5, 8)], alone(5, 0, sound(5, 8)))


def test_settings_change_without_another_compilation(model):
    batch = model.batch(1)
    row = batch.join(seed=0, **GREEDY)
    frames = sound(0, 12)
    heard = [batch.step({row: frame})[row] for frame in frames[:6]]
    batch.change(row, temperature=0.9, top_k=7)
    assert row.sampling.audio.top_k == 7
    batch.change(row, **GREEDY)
    heard += [batch.step({row: frame})[row] for frame in frames[6:]]
    check_equal(heard, Alone(model)(0, 1, frames))
    assert len(batch._steps) == 1


def test_a_row_given_sound_at_once_is_primed_first(model):
    batch = model.batch(2)
    row = batch.join(seed=4)
    assert not row.primed
    first = batch.step({row: sound(4, 1)[0]})[row]
    assert (row.primed, row.positions, batch.free, batch.rows) == (True, 2, 1, [row])
    check_equal([first], Alone(model)(4, 0, sound(4, 1)))
    assert batch.step({}) == {}


def test_an_eight_bit_cache(checkpoint):
    from moshi_mlx import MimiConfig, MoshiConfig, MoshiDepthConfig, MoshiForConditionalGeneration

    codec = MimiConfig(num_filters=2, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                       codebook_size=32, codebook_dim=8, num_quantizers=8, sliding_window=24)  # fmt: skip
    depth = MoshiDepthConfig(vocab_size=64, audio_vocab_size=32, hidden_size=32, input_size=64, num_hidden_layers=1,
                             num_attention_heads=2, ffn_dim=64)  # fmt: skip
    config = MoshiConfig(vocab_size=64, audio_vocab_size=32, hidden_size=64, num_hidden_layers=2,
                         num_attention_heads=2, ffn_dim=128, sliding_window=20, audio_encoder_config=codec,
                         depth_decoder_config=depth)  # fmt: skip
    model = MoshiForConditionalGeneration(config)
    batch = model.batch(2, kv_bits=8)
    row = batch.join(seed=1, **GREEDY)
    frames = [batch.step({row: frame})[row] for frame in sound(1, 12)]
    session = model.session(seed=1, kv_bits=8, **GREEDY)
    check_equal(frames, [session.step(frame) for frame in sound(1, 12)])


@pytest.mark.parametrize("slots", [0, -1, 1.5, True, "2", None])
def test_slots_are_a_number(model, slots):
    with pytest.raises(InputError, match=r"^slots: got"):
        model.batch(slots)


def test_what_cannot_be_is_named(model):
    batch = model.batch(1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'volume'"):
        batch.join(volume=3)
    with pytest.raises(InputError, match=r"^temperature: got -1"):
        batch.join(temperature=-1)
    for seed in (1.5, True, "1", None):
        with pytest.raises(InputError, match=r"^seed: got"):
            batch.join(seed=seed)
    assert batch.free == 1
    row = batch.join()
    with pytest.raises(InputError, match=r"^join: all 1 slots are taken"):
        batch.join()
    for bad in (np.zeros(1920, np.int16), np.zeros(100, np.float32), [0.0], "sound", None):
        with pytest.raises(InputError, match=r"^sounds: got"):
            batch.step({row: bad})
    assert row.positions == 0
    for call in (batch.leave, batch.change, lambda row: batch.step({row: sound(0, 1)[0]})):
        with pytest.raises(InputError, match=r"^row: got"):
            call(0)
    batch.leave(row)
    again = batch.join()
    for call in (batch.leave, batch.change, lambda row: batch.step({row: sound(0, 1)[0]})):
        with pytest.raises(InputError, match=r"^row: got"):
            call(row)  # its slot is another's now
    assert batch.rows == [again]
