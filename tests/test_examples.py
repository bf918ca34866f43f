"""Every public name has an example in its help, and each of them runs."""

import contextlib
import doctest
import functools
import io

import mlx.core as mx
import numpy as np
import pytest

import moshi_mlx

PARSER = doctest.DocTestParser()


@pytest.fixture(scope="module")
def loaded():
    """`load` that reads the miniature once for all of them."""
    return functools.lru_cache(moshi_mlx.load)


@pytest.mark.parametrize("name", moshi_mlx.__all__)
def test_a_public_names_example(name, loaded, monkeypatch, tmp_path):
    words = getattr(moshi_mlx, name).__doc__ or ""  # its own, not a parent's
    if name != "load":
        monkeypatch.setattr(moshi_mlx, "load", loaded)
    monkeypatch.chdir(tmp_path)
    test = PARSER.get_doctest(words, {"moshi_mlx": moshi_mlx, "mx": mx, "np": np}, name, None, 0)
    assert test.examples, f"{name} has no example"
    assert any(f"moshi_mlx.{name}" in one.source or "moshi_mlx.load(" in one.source for one in test.examples)
    said = io.StringIO()
    with contextlib.redirect_stderr(io.StringIO()):
        failed = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(test, out=said.write).failed
    assert not failed, said.getvalue()
