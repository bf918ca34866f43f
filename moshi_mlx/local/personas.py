"""The options that say who Moshi is: a published voice, or the voice and the persona that a PersonaPlex takes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..checkpoints import hub
from ..checkpoints.names import VOICES_ARCHIVE_NAME
from ..checkpoints.personas.voices import Voices, stem_of
from ..errors import InputError
from ..terminal.arguments import Parser

PUBLISHED = ("moshiko", "moshika")
EXAMPLE = "nvidia/personaplex-7b-v1"


def add_options(parser: argparse.ArgumentParser) -> None:
    """--voice and what is around it."""
    parser.add_argument("--voice", metavar="NAME_OR_FILE", help="moshiko (default) or moshika; with --model and a "
                        "PersonaPlex one of its voices, a .pt file or a recording")  # fmt: skip
    group = parser.add_argument_group("PersonaPlex", f"--model {EXAMPLE} and models like it (docs/personas.md)")
    group.add_argument("--persona", metavar="TEXT", help="who Moshi is to be")
    group.add_argument("--prompt", type=Path, metavar="FILE.safetensors", help="keeps voice and persona, once read, "
                       "and begins from them the next time")  # fmt: skip
    group.add_argument("--wait-for-greeting", action="store_true", help="Moshi hears silence until it has greeted you")
    group.add_argument("--list-voices", action="store_true", help="show the voices of --model, and end")


def model_of(parser: Parser | argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """Of the published Moshis without --model, the one with the voice. Ends the program where there is none."""
    voice = arguments.voice or PUBLISHED[0]
    for name in ("persona", "prompt", "list_voices"):
        if getattr(arguments, name):
            parser.error(f"--{name.replace('_', '-')} needs a --model that takes a persona, such as {EXAMPLE}")
    if voice not in PUBLISHED:
        known = " or ".join(PUBLISHED)
        parser.error(f"--voice {voice}: expected {known}, or a --model that has other voices, such as {EXAMPLE}")
    return voice


def list_voices(arguments: argparse.Namespace, write: Callable[[str], object]) -> int:
    """The names of a model's voices, a line each; nothing but them is downloaded. Raises InputError for none."""
    names = Voices(hub.local_folder(arguments.model, only="config", more=[VOICES_ARCHIVE_NAME])).names()
    if not names:
        raise InputError(f"{arguments.model}: has no voices ({VOICES_ARCHIVE_NAME} or a folder voices)")
    for name in names:
        write(f"{name}\n")
    return 0


def settings(model: Any, arguments: argparse.Namespace, say: Callable[[str], object]) -> dict[str, Any]:
    """What a session is to be given: the prompt, which is read here or was kept, and whether to wait."""
    given: dict[str, Any] = {"wait_for_greeting": True} if arguments.wait_for_greeting else {}
    voice = None if arguments.voice in PUBLISHED else arguments.voice
    if arguments.prompt is not None and arguments.prompt.exists():
        given["prompt"] = _kept(model, arguments.prompt, voice, arguments.persona)
        say(f"prompt of {given['prompt'].length} frames from {arguments.prompt}")
    elif voice is not None or arguments.persona is not None:
        given["prompt"] = _read(model, voice, arguments.persona, say)
        if arguments.prompt is not None:
            model.save_prompt(given["prompt"], arguments.prompt)
            say(f"prompt kept in {arguments.prompt}")
    elif arguments.prompt is not None:
        raise InputError(f"--prompt {arguments.prompt}: no such file; with --voice or --persona it is made")
    return given


def _read(model: Any, voice: str | None, persona: str | None, say: Callable[[str], object]) -> Any:
    say("reading the prompt ...")
    began = time.perf_counter()
    prompt = model.prompt(voice=voice, persona=persona)
    say(f"prompt of {prompt.length} frames read in {time.perf_counter() - began:.1f} s")
    return prompt


def _kept(model: Any, path: Path, voice: str | None, persona: str | None) -> Any:
    """The prompt in a file. Raises InputError where it is of another voice or persona than is asked for."""
    prompt = model.load_prompt(path)
    kept = prompt.about
    if voice is not None and stem_of(Path(voice).name) != stem_of(kept.get("voice", "")):
        raise InputError(f"--prompt {path}: keeps the voice {kept.get('voice') or 'of nobody'}, not {voice}")
    if persona is not None and persona.strip() != kept.get("persona", ""):
        raise InputError(f"--prompt {path}: keeps another persona ({kept.get('persona', '')!r}); give another file")
    return prompt
