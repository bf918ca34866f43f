"""Progress is for people: a bar on a terminal, and only where the work takes long."""

import io

import pytest

from moshi_mlx.terminal import progress


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("screen", "shown", "after", "expected"), [
    (Screen(), True, 0, True),
    (Screen(), True, 60, False),  # done before anybody waits
    (Screen(), False, 0, False),
    (io.StringIO(), True, 0, False),
])  # fmt: skip
def test_steps_are_a_bar_where_someone_waits(monkeypatch, screen, shown, after, expected):
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(progress, "BAR_AFTER", after)
    with progress.steps("compiling", 2, shown) as done:
        for _ in range(2):
            done(1)
    assert ("compiling" in screen.getvalue()) == expected


@pytest.mark.parametrize(("loaded", "total", "said"), [
    (4_200_000_000, 4_940_000_000, "4.20 GB of 4.94 GB loaded"),
    (3_000_000, 11_900_000, "3.0 MB of 11.9 MB loaded"),
    (12_000_000, 0, "12.0 MB loaded"),  # a model of which nothing was known before
])  # fmt: skip
def test_what_is_loaded_is_said_in_sizes_that_fit(loaded, total, said):
    assert progress.loaded_of(loaded, total) == said
