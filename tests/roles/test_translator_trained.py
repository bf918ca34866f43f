"""A translator is trained as Moshi is, with what it is told."""

import mlx.core as mx
import numpy as np
import pytest
from family import FAMILY, loaded, reference
from training import tones

import moshi_mlx
from moshi_mlx.conversation import streams
from moshi_mlx.train import forward
from moshi_mlx.train.__main__ import main

SETTINGS = ["--batch-size", "1", "--iters", "2", "--rank", "2", "--duration-sec", "1", "--learning-rate", "0.01"]


@pytest.mark.parametrize("kind", ["hibiki", "hibiki_zero"])
def test_the_likeliest_tokens_are_the_references(kind):
    model, said = loaded(kind), reference(kind)
    frames, longest = said["frames"], max(model.config.audio_delays)
    length, own = frames.shape[1], len(frames)
    tokens = np.concatenate([frames, said["user"][:, :length]])[None].astype(np.int32)
    text, audio = forward.logits(model, mx.array(tokens))
    np.testing.assert_array_equal(np.array(text.argmax(-1))[0], frames[0])
    codes = np.array(streams.undelayed(model.config, audio.swapaxes(1, 2)).argmax(-1))[0]
    np.testing.assert_array_equal(codes[:, : length - longest], frames[1:, : length - longest])
    out = model(
        input_ids=tokens[:, 0], moshi_audio_codes=tokens[:, 1:own], user_audio_codes=tokens[:, own:],
        text_labels=tokens[:, 0], audio_labels=tokens[:, 1:own],
    )  # fmt: skip
    np.testing.assert_array_equal(np.array(out.logits.argmax(-1))[0], frames[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hibiki", "hibiki_zero"])
def test_adapters_are_trained_and_loaded(kind, tmp_path):
    tones(tmp_path / "sounds", count=2)
    model = str(FAMILY / kind)
    prepared, trained = str(tmp_path / "prepared"), str(tmp_path / "adapter")
    assert main(["prepare", "--model", model, "--data", str(tmp_path / "sounds"), "--output", prepared]) == 0
    assert main(["--model", model, "--data", prepared, "--adapter-path", trained, *SETTINGS]) == 0
    greedy = {"temperature": 0, "text_temperature": 0, "progress": False}
    adapted = moshi_mlx.load(model, dtype=mx.float32, adapter=trained).session(**greedy)
    plain = loaded(kind).session(**greedy)
    columns = reference(kind)["user"].T
    assert [adapted.step_codes(c).text_token for c in columns] != [plain.step_codes(c).text_token for c in columns]
