"""Frames of conversations compared, and where a batch keeps its rings."""

import numpy as np

from moshi_mlx.models.state import flatten


def sound(seed, frames):
    return 0.1 * np.random.default_rng(seed).standard_normal((frames, 1920)).astype(np.float32)


def check_equal(frames, alone):
    assert [frame.text_token for frame in frames] == [frame.text_token for frame in alone]
    assert "".join(frame.text for frame in frames) == "".join(frame.text for frame in alone)
    for ours, theirs in zip(frames, alone, strict=True):
        assert (ours.pcm is None) == (theirs.pcm is None)
        if ours.pcm is not None:
            np.testing.assert_array_equal(ours.audio_codes, theirs.audio_codes)
            np.testing.assert_allclose(ours.pcm, theirs.pcm, atol=1e-5)


def rings(state):
    return {name: leaf for name, leaf in flatten(state) if ".layers." in name}


def address(array):
    return np.array(array, copy=False).__array_interface__["data"][0]


def addresses(batch):
    return {name: address(leaf) for name, leaf in rings(batch._state).items()}
