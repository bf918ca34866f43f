"""A translator's bundle says what its session says, with what it was told."""

import mlx.core as mx
import numpy as np
import pytest
from batching import sound
from family import FAMILY, loaded, reference
from helpers import GREEDY

from moshi_mlx import InputError
from moshi_mlx.conversation.duplex import DuplexSampling
from moshi_mlx.export.__main__ import main
from moshi_mlx.export.bundle import export
from moshi_mlx.export.running import Bundle, read_manifest
from moshi_mlx.export.talking import Talk
from moshi_mlx.models.sampling import MOSHI

CASES = {
    "hibiki": ("hibiki", {}),
    "guided": ("hibiki", {"guidance": 3}),
    "told": ("hibiki", {"conditions": {"description": "bad"}}),
    "zero": ("hibiki_zero", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_equals_the_session(tmp_path, case):
    kind, told = CASES[case]
    export(FAMILY / kind, tmp_path / "bundle", mx.float32, **told)
    session = loaded(kind).session(7, progress=False, **{**MOSHI, **told})
    talk = Talk(Bundle(tmp_path / "bundle", FAMILY / kind), 7, DuplexSampling.of(MOSHI))
    for pcm in sound(0, 30):  # the window wraps
        ours, theirs = talk.step(pcm), session.step(pcm)
        assert ours.text_token == theirs.text_token
        if theirs.pcm is not None:
            np.testing.assert_array_equal(ours.audio_codes, theirs.audio_codes)
            np.testing.assert_allclose(ours.pcm, theirs.pcm, atol=1e-5)


def test_is_the_reference_with_the_end_of_its_source(tmp_path):
    export(FAMILY / "hibiki", tmp_path / "bundle", mx.float32, guidance=3)
    said = reference("hibiki")
    talk = Talk(Bundle(tmp_path / "bundle", FAMILY / "hibiki"), 0, DuplexSampling.of(GREEDY))
    text = [talk.first_token, *(talk.step_codes(mx.array(column[None])).text_token for column in said["user"].T)]
    assert text == said["text_cfg3"].tolist()
    values, *_ = read_manifest(tmp_path / "bundle")
    assert int(values["user_tokens"]) == said["user"].max() + 1


def test_from_the_command_line(tmp_path, capsys):
    model = str(FAMILY / "hibiki")
    told = ["--guidance", "3", "--condition", "description=good"]
    assert main([model, str(tmp_path / "bundle"), "--dtype", "float32", "--check", *told]) == 0
    assert capsys.readouterr().out.count("equal to the session") == 2
    assert main([model, str(tmp_path / "other"), "--condition", "mood=good"]) == 2
    assert "conditions: got 'mood', expected one of description" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match="guidance: got 3, but this model takes no conditions"):
        export(FAMILY / "hibiki_zero", tmp_path / "other", guidance=3)
