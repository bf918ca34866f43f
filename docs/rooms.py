"""Draw docs/rooms.svg: the rooms of the house and who imports whom, from the imports as they are.

    python docs/rooms.py

The rows are the layers of the contract in pyproject.toml, the top one first. A line goes from a room to each room that
it imports, the thicker the more modules do; one that went upwards would be red. Lines to the ground floor, which
everybody stands on, are left out.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import grimp

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "rooms.svg"
WIDTH, ROW, BOX, HEIGHT = 1000, 96, 150, 40
GROUND = ("moshi_mlx.terminal", "moshi_mlx.inputs", "moshi_mlx.errors", "moshi_mlx.exact")


def rows() -> list[list[str]]:
    """The rooms of each layer by their modules, the top layer first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[room.strip() for room in layer.split("|")] for layer in layers]


def arrows(rooms: list[str]) -> Counter[tuple[str, str]]:
    """How many modules of a room import modules of another: imports in functions count, those for types do not."""
    graph = grimp.build_graph("moshi_mlx", "convert", "bench", "miniature", exclude_type_checking_imports=True)
    found: set[tuple[str, str, str]] = set()
    for module in graph.modules:
        here = room_of(module, rooms)
        for imported in graph.find_modules_directly_imported_by(module):
            there = room_of(imported, rooms)
            if here and there and here != there:
                found.add((module, here, there))
    return Counter((here, there) for _, here, there in found)


def room_of(module: str, rooms: list[str]) -> str | None:
    return next((room for room in rooms if module == room or module.startswith(f"{room}.")), None)


def places(layers: list[list[str]]) -> dict[str, tuple[float, float]]:
    """Where each box's upper edge has its middle; lone rooms stand left and right in turn, so that lines pass them."""
    place: dict[str, tuple[float, float]] = {}
    upper = [layer for layer in layers if layer[0] not in GROUND]
    for row, layer in enumerate([*upper, list(GROUND)]):
        for n, room in enumerate(layer):
            lone = 130 * (-1) ** row if len(layer) == 1 else 0
            place[room] = (WIDTH * (n + 1) / (len(layer) + 1) + lone, 20 + ROW * row)
    return place


def draw(place: dict[str, tuple[float, float]], lines: Counter[tuple[str, str]]) -> str:
    """The picture as SVG."""
    height = max(y for _, y in place.values()) + HEIGHT + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for (here, there), count in sorted(lines.items()):
        (x1, y1), (x2, y2) = place[here], place[there]
        if there in GROUND and (here in GROUND or y2 > y1):
            continue
        colour = "#4a7ab5" if y2 > y1 else "#d03030"
        parts.append(
            f'<path d="M{x1:.0f} {y1 + HEIGHT:.0f} L{x2:.0f} {y2:.0f}" fill="none" stroke="{colour}" '
            f'stroke-opacity="0.6" stroke-width="{0.8 + math.log2(count):.1f}"/>'
        )
    for room, (x, y) in place.items():
        fill = "#e9edf2" if room in GROUND else "#f4f7fb"
        parts.append(
            f'<rect x="{x - BOX / 2:.0f}" y="{y:.0f}" width="{BOX}" height="{HEIGHT}" rx="6" fill="{fill}" '
            f'stroke="#4a7ab5"/><text x="{x:.0f}" y="{y + 26:.0f}" text-anchor="middle" font-size="17">'
            f"{room.removeprefix('moshi_mlx.')}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])


def picture() -> str:
    layers = rows()
    return draw(places(layers), arrows([room for layer in layers for room in layer]))


if __name__ == "__main__":
    PICTURE.write_text(picture())
