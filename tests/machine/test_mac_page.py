"""docs/mac.md: its figures are those of the code, and it says that they are computed."""

import re

import pytest
from helpers import ROOT

from bench.paper.roofline import weightless
from moshi_mlx.machine import chips, preflight
from moshi_mlx.models.config import PRESETS

PAGE = (ROOT / "docs" / "mac.md").read_text()
COLUMNS = [(4, None), (4, 8), (8, None), (None, None)]  # bits of the weights, and of the cache
ROWS = [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\| M\d.*\|$", PAGE, re.M)]


@pytest.fixture(scope="module")
def frames():
    """(bytes that a frame reads, bytes held) of each column."""
    models = {bits: weightless(PRESETS["moshi-7b"], bits) for bits in (4, 8, None)}
    return [(preflight.frame_bytes(models[bits], kv), preflight.conversation_bytes(models[bits], kv))
            for bits, kv in COLUMNS]  # fmt: skip


def test_every_chip_has_its_row():
    assert [row[0] for row in ROWS] == [chip.name for chip in chips.CHIPS]
    assert [row[-1] for row in ROWS] == [chip.source for chip in chips.CHIPS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_its_figures_are_what_the_page_says_they_are(frames, row):
    chip = next(chip for chip in chips.CHIPS if chip.name == row[0])
    assert float(row[1]) == chip.bandwidth
    for cell, (read, held) in zip(row[2:-1], frames, strict=True):
        ms = chips.frame_bound_ms(read, 0.85 * chip.bandwidth) + 9
        room = chips.least_memory(chip, held) is not None
        assert cell == (f"**{ms:.0f}**" if ms < 72 and room else f"{ms:.0f}" + ("" if room else " (no room)"))


def test_sizes_in_the_text_are_the_codes(frames):
    for read, held in frames:
        assert f"{read / 1e9:.2f}" in PAGE
        assert f"{held / 1e9:.1f}" in PAGE


def test_it_says_that_nothing_was_measured():
    assert "nothing here was measured on a Mac" in PAGE
