"""The model card of a converted folder: what it is made of, under which licence, and how to run it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from moshi_mlx.checkpoints.disk.files import read_bytes
from moshi_mlx.checkpoints.quantization import Quantization
from moshi_mlx.checkpoints.reading import LAYOUTS
from moshi_mlx.errors import CheckpointError
from moshi_mlx.models.roles import KINDS

MAX_CARD_BYTES = 2**22

LIBRARIES = {"mlx": "mlx", "kyutai": "moshi", "huggingface": "transformers"}
GIVEN = {"dialogue": "", "translator": " FILE", "transcriber": " FILE", "speaker": ' "TEXT"'}
"""What the command of a role takes beside the model."""
TAGS = {
    "dialogue": ["moshi", "speech-to-speech"], "translator": ["hibiki", "speech-translation", "speech-to-speech"],
    "transcriber": ["automatic-speech-recognition"], "speaker": ["text-to-speech"],
}  # fmt: skip
RUN = {
    "mlx": "pip install .  # in a checkout of this project; moshi_mlx on the package index is another one\n",
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


def run_line(role: str, model: str) -> str:
    """The command that runs a model of a role."""
    return f"python -m moshi_mlx.{KINDS[role][1]}{GIVEN[role]} --model {model}"


def card(
    layout: str, origin: Origin, quantized: dict[str, Quantization | None], role: str = "dialogue",
    about: Sequence[str] = (),
) -> str:  # fmt: skip
    """README.md with the front matter that the hub reads; `about` are lines of what the model is."""
    kinds = sorted({str(kind) for kind in quantized.values() if kind})
    front = [f"license: {origin.licence or 'other'}"]
    if origin.base_model:
        front += [f"base_model: {origin.base_model}"]
    front += [f"library_name: {LIBRARIES[layout]}", "tags:", *(f"- {tag}" for tag in TAGS[role])]
    front += ["- mlx"] if layout == "mlx" else []
    licence = {
        None: "The source names no licence: ask whoever made it before you pass these weights on.",
        "cc-by-4.0": "CC-BY 4.0: name Kyutai, who made Moshi, when you pass these weights on.",
    }.get(origin.licence, f"{origin.licence}, as the source has it.")
    of = f" of [{origin.base_model}](https://huggingface.co/{origin.base_model})" if origin.base_model else ""
    name = KINDS[role][0]
    what = "Moshi, the full-duplex speech-text model" if role == "dialogue" else f"A {name} of Moshi's family"
    run = RUN[layout] if role == "dialogue" or layout == "mlx" else "pip install moshi  # its README has the command"
    if layout == "mlx":
        run += run_line(role, "PATH_OR_HUB_ID")
    return "\n".join([
        "---", *front, "---", "",
        f"# {'Moshi' if role == 'dialogue' else f'A {name}'} in the {LAYOUTS[layout]} layout", "",
        f"{what}: the weights{of} in the {LAYOUTS[layout]} layout, "
        f"{'quantized: ' + '; '.join(kinds) if kinds else 'not quantized'}. Written by `moshi_mlx.convert`.", "",
        *(f"- {line}" for line in about), *([""] if about else []),
        "## Run", "", "```sh", run, "```", "",
        "## Licence", "", licence, "",
    ])  # fmt: skip
