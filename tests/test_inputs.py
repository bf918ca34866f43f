"""What people hand in: checked where it has values; while a function is traced, nothing is raised to be caught."""

import sys
import threading

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx import InputError
from moshi_mlx.inputs import is_traced, tokens

GIVEN = mx.array([[1, 9]])


def traced_by(transform, array=GIVEN):
    """What `is_traced` says of an argument, of what is computed from it and of a constant, inside the transform."""
    seen = []

    def function(weight, given):
        seen.extend(is_traced(x) for x in (given, given * 2, mx.array([3])))
        return (weight * given).sum()

    mx.eval(transform(function)(mx.ones(array.shape), array))
    return seen


@pytest.mark.compiled
@pytest.mark.parametrize(
    "transform",
    [mx.compile, mx.grad, mx.value_and_grad, lambda f: mx.compile(mx.grad(f)), lambda f: mx.grad(mx.compile(f)),
     lambda f: mx.vmap(f, in_axes=(0, 0))],
    ids=["compile", "grad", "value_and_grad", "compiled gradient", "gradient of a compiled one", "vmap"],
)  # fmt: skip
def test_arguments_of_traced_functions_are_told_apart(transform):
    assert traced_by(transform) == [True, True, False]


def test_eager_arrays_are_not_traced():
    for array in (GIVEN, GIVEN + 1, mx.array(3), mx.zeros((1,), mx.int32), mx.array([True])):
        assert not is_traced(array)
    assert traced_by(lambda f: f) == [False] * 3
    said = []
    thread = threading.Thread(target=lambda: said.append(is_traced(mx.array([1]))))
    thread.start()
    thread.join()
    assert said == [False]


def test_without_compiling_values_are_known():
    mx.disable_compile()
    try:
        assert not is_traced(GIVEN)
        with pytest.raises(InputError, match="got values from 1 to 9, expected 0 to 8"):
            tokens("ids", GIVEN, (None, None), 0, 8)
    finally:
        mx.enable_compile()


@pytest.mark.compiled
@pytest.mark.parametrize("kind", [mx.int32, mx.int64, mx.uint8, mx.uint32])
def test_a_traced_number_outside_the_range_becomes_the_nearest_inside(kind):
    inside = mx.compile(lambda ids: tokens("ids", ids, (None, None), 2, 8))(GIVEN.astype(kind))
    np.testing.assert_array_equal(np.array(inside), [[2, 8]])
    assert inside.dtype == mx.int32


def raised_in(function, *arguments):
    """The exceptions that are raised while a function is traced, caught or not."""
    seen = []

    def trace(frame, event, argument):
        if event == "exception":
            seen.append(argument[0])
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(*arguments)
    finally:
        sys.settrace(before)
    return seen


PUBLIC = {
    "whole": lambda m, ids, codes: (
        m(input_ids=ids, moshi_audio_codes=codes, user_audio_codes=codes, text_labels=ids, audio_labels=codes).loss
    ),
    "text": lambda m, ids, codes: m.decoder(input_ids=ids, labels=ids).loss,
    "depth": lambda m, ids, codes: (
        m.depth_decoder(
            input_ids=mx.concatenate([ids[:, :1], codes[:, :7, 0]], axis=1),
            last_hidden_state=mx.zeros((1, m.config.hidden_size)),
            labels=codes[:, :, 0],
        ).loss
    ),
}


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("transform", [mx.compile, lambda f: mx.value_and_grad(f)], ids=["compile", "value_and_grad"])
def test_nothing_is_raised_and_caught_inside_a_traced_function(model, name, transform):
    """Every public call that takes tokens or codes and can be traced: the codec evaluates as it goes."""
    ids = mx.array(np.random.default_rng(0).integers(4, 32, (1, 3)))
    codes = mx.array(np.random.default_rng(1).integers(0, 16, (1, 8, 3)))

    def function(weight, ids, codes):
        return weight * PUBLIC[name](model, ids, codes)

    assert raised_in(transform(function), mx.array(1.0), ids, codes) == []
