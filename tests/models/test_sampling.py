"""Sampling: cuts against a plain definition, draws against their distribution, keys that belong to conversations."""

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx import InputError, Sampling
from moshi_mlx.models.sampling import RowSampling, noise, sample

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2], dtype=np.float32))


def drawn(settings, count=4000):
    """Frequencies of `count` conversations that sample the same logits."""
    logits = mx.broadcast_to(mx.array(LOGITS), (count, len(LOGITS)))
    keys = mx.stack([mx.random.key(seed) for seed in range(count)])
    (gumbel,), _ = noise(keys, [settings.candidates(len(LOGITS))])
    tokens = np.array(sample(logits, gumbel, settings))
    assert tokens.dtype == np.uint32
    return np.bincount(tokens, minlength=len(LOGITS)) / count


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (Sampling(), [0, 1, 2, 3, 4]),
        (Sampling(top_k=2), [1, 3]),
        (Sampling(top_k=99), [0, 1, 2, 3, 4]),
        (Sampling(top_p=0.6), [1, 3]),  # 0.4 alone does not reach 0.6, with 0.25 it does
        (Sampling(top_p=0.01), [1]),
        (Sampling(min_p=0.45), [1, 3, 4]),
        (Sampling(top_k=3, top_p=0.7), [1, 3]),
        (Sampling(temperature=0.5), [0, 1, 2, 3, 4]),
    ],
)
def test_draws_follow_the_cut_distribution(settings, kept):
    weights = np.zeros(len(LOGITS))
    weights[kept] = np.exp(LOGITS[kept] / settings.temperature)
    np.testing.assert_allclose(drawn(settings), weights / weights.sum(), atol=0.03)


def test_temperature_zero_takes_the_likeliest_and_draws_no_noise():
    settings = Sampling(temperature=0, top_k=3)
    keys = mx.stack([mx.random.key(1)])
    (none,), same = noise(keys, [settings.candidates(5)])
    assert none.shape == (1, 0)
    assert mx.array_equal(keys, same)
    assert sample(mx.array(LOGITS[None]), none, settings).item() == 1


def test_keys_belong_to_conversations():
    keys = mx.stack([mx.random.key(5), mx.random.key(6)])
    both, after = noise(keys, [3, 4])
    alone, after_alone = noise(keys[1:], [3, 4])
    for a, b in zip(both, alone, strict=True):
        assert mx.array_equal(a[1:], b)
    assert mx.array_equal(after[1:], after_alone)
    assert not mx.array_equal(after, keys)
    assert not mx.array_equal(both[0][0], both[0][1])


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2.5}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -1}, "min_p"),
    ],
)
def test_settings_out_of_range_are_named(values, name):
    with pytest.raises(InputError, match=f"^{name}: got"):
        Sampling(**values)


ROWS = [
    Sampling(0.8, 250),
    Sampling(0),
    Sampling(1.2, 1),
    Sampling(0.7, 25, 0.9),
    Sampling(1.0, 512, 0.3, 0.01),
    Sampling(1.0, 40, 1.0, 0.2),
]


@pytest.mark.parametrize("others", [[], [Sampling(1.0)], [Sampling(0.9, 0, 0.95)], [Sampling(1.0, 600)]])
@pytest.mark.parametrize("vocabulary", [300, 2000])
def test_rows_draw_what_their_settings_draw_alone(others, vocabulary):
    settings = [*ROWS, *others]
    rng = np.random.default_rng(0)
    for _ in range(20):
        logits = mx.array(rng.normal(scale=3, size=(len(settings), vocabulary)).astype(np.float32))
        gumbel = mx.array(rng.gumbel(size=logits.shape).astype(np.float32))
        rows = RowSampling.of(settings)
        assert (rows.most == 0) == bool(others)
        tokens = np.array(sample(logits, gumbel, rows))
        alone = [sample(logits[i : i + 1], gumbel[i : i + 1], each).item() for i, each in enumerate(settings)]
        assert tokens.tolist() == alone


def test_a_draw_does_not_depend_on_tokens_that_are_cut_either_way():
    rng = np.random.default_rng(1)
    logits = mx.array(rng.normal(size=(200, 50)).astype(np.float32))
    gumbel = mx.array(rng.gumbel(size=logits.shape).astype(np.float32))
    narrow, wide = (np.array(sample(logits, gumbel, Sampling(top_k=k))) for k in (20, 21))
    assert 0 < (narrow != wide).sum() < 30  # only where the one more wins
