"""The published sizes of the sister models: what they are, and what a frame of each launches on a GPU."""

import pytest

from bench import cases, people
from bench.paper import dispatches, roofline
from bench.paper.dispatches import weightless
from bench.published import PUBLISHED

# Kernels of a frame in 4 bits, which it must not go over again, and 10^9 weights as the models are named by.
SIZES = {
    "hibiki-1b": ("translator", 1259, (1.5, 1.8)),
    "hibiki-2b": ("translator", 1705, (2.6, 2.9)),
    "hibiki-zero-3b": ("translator", 2134, (2.8, 3.2)),
    "stt-1b": ("transcriber", 571, (0.9, 1.1)),
    "stt-2.6b": ("transcriber", 978, (2.5, 2.7)),
    "tts-1.6b": ("speaker", 2356, (1.7, 1.9)),
    "tts-0.75b": ("speaker", 1449, (0.7, 0.9)),
}


@pytest.mark.compiled
@pytest.mark.parametrize("size", SIZES)
def test_a_published_size(size):
    role, kernels, _ = SIZES[size]
    config = cases.config_of(size)
    assert config.role == role
    assert roofline.cost(config, 4).kernels <= kernels


def test_every_published_size_is_here():
    assert set(SIZES) == set(PUBLISHED)


@pytest.mark.parametrize("size", SIZES)
def test_weights_are_as_many_as_the_name_says(size):
    model = weightless(cases.config_of(size), None)
    least, most = SIZES[size][2]
    assert least < (model.num_parameters() - model.audio_encoder.num_parameters()) / 1e9 < most


def test_parts_are_those_that_a_model_has():
    assert set(dispatches.of_parts(weightless(cases.config_of("stt-1b"), 4))) == {"encode", "language", "frame"}


@pytest.mark.compiled
@pytest.mark.slow
def test_people_a_chip():
    table = people.of_family(["M2 Pro"])
    assert all(size in table for size in PUBLISHED)
    assert "M2 Pro" in table
