"""The model card of a converted folder: what it is made of, under which licence, and how to run it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from moshi_mlx.checkpoints.disk.files import read_bytes
from moshi_mlx.checkpoints.quantization import Quantization
from moshi_mlx.checkpoints.reading import LAYOUTS
from moshi_mlx.errors import CheckpointError

MAX_CARD_BYTES = 2**22

LIBRARIES = {"mlx": "mlx", "kyutai": "moshi", "huggingface": "transformers"}
RUN = {
    "mlx": "pip install .  # in a checkout of this project; moshi_mlx on the package index is another one\n"
    "python -m moshi_mlx.local --model PATH_OR_HUB_ID",
    "kyutai": "pip install moshi\npython -m moshi.server --hf-repo HUB_ID",
    "huggingface": "pip install transformers\n"
    "python -c \"import transformers; transformers.MoshiForConditionalGeneration.from_pretrained('PATH_OR_HUB_ID')\"",
}


class Origin(NamedTuple):
    """What is known of the weights that were converted."""

    base_model: str | None
    licence: str | None


def origin_of(source: str, folder: Path) -> Origin:
    """From the source's own model card, else from its hub id; Kyutai publishes Moshi's weights under CC-BY 4.0."""
    said = _front_matter(folder / "README.md")
    hub_id = None if os.path.isdir(os.path.expanduser(source)) else source
    licence = said.get("license") or ("cc-by-4.0" if hub_id and hub_id.startswith("kyutai/") else None)
    return Origin(hub_id or said.get("base_model"), licence)


def _front_matter(path: Path) -> dict[str, str]:
    """The plain `key: value` lines between the first two `---` of a card; of a list its first item."""
    try:
        lines = read_bytes(path, MAX_CARD_BYTES).decode(errors="replace").splitlines()
    except CheckpointError:  # none, or none that can be read: nothing is known then
        return {}
    if not lines or lines[0].strip() != "---":
        return {}
    values: dict[str, str] = {}
    key = ""
    for line in lines[1:]:
        if line.strip() == "---":
            break
        name, colon, value = line.partition(":")
        if line.startswith(("-", " ")):
            values[key] = values.get(key) or line.strip(" -").strip("'\"")
        elif colon:
            key, values[name.strip()] = name.strip(), value.strip().strip("'\"")
    return {name: value for name, value in values.items() if value}


def card(layout: str, origin: Origin, quantized: dict[str, Quantization | None]) -> str:
    """README.md with the front matter that the hub reads."""
    kinds = sorted({str(kind) for kind in quantized.values() if kind})
    front = [f"license: {origin.licence or 'other'}"]
    if origin.base_model:
        front += [f"base_model: {origin.base_model}"]
    front += [f"library_name: {LIBRARIES[layout]}", "tags:", "- moshi", "- speech-to-speech"]
    front += ["- mlx"] if layout == "mlx" else []
    licence = {
        None: "The source names no licence: ask whoever made it before you pass these weights on.",
        "cc-by-4.0": "CC-BY 4.0: name Kyutai, who made Moshi, when you pass these weights on.",
    }.get(origin.licence, f"{origin.licence}, as the source has it.")
    of = f" of [{origin.base_model}](https://huggingface.co/{origin.base_model})" if origin.base_model else ""
    return "\n".join([
        "---", *front, "---", "",
        f"# Moshi in the {LAYOUTS[layout]} layout", "",
        f"Moshi, the full-duplex speech-text model: the weights{of} in the {LAYOUTS[layout]} layout, "
        f"{'quantized: ' + '; '.join(kinds) if kinds else 'not quantized'}. Written by `moshi_mlx.convert`.", "",
        "## Run", "", "```sh", RUN[layout], "```", "",
        "## Licence", "", licence, "",
    ])  # fmt: skip
