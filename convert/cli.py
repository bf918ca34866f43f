"""The command line: python -m moshi_mlx.convert, with `inspect` and `compare` as commands of their own.

Flags follow mlx_lm.convert, which people who convert models for MLX know.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from moshi_mlx.checkpoints import hub, writing
from moshi_mlx.checkpoints.disk import folders
from moshi_mlx.checkpoints.quantization import MODES
from moshi_mlx.checkpoints.reading import LAYOUTS, Checkpoint, moshi_tokenizer, open_checkpoint
from moshi_mlx.errors import InputError, MoshiError
from moshi_mlx.terminal import streams
from moshi_mlx.terminal.arguments import Parser
from moshi_mlx.terminal.progress import progress
from moshi_mlx.terminal.sizes import size

from . import card, comparing, describing, inspecting, pipeline, recipes
from .pipeline import Options, Outcome

PROGRAM = "moshi_mlx.convert"
EPILOG = """\
commands:
  inspect FOLDER                         layout, sizes, bits by layer, bytes, checksums, what would load it
  compare A B --input speech.wav         how far B, say in 4 bits, is from A

The earlier port of moshi_mlx and moshi-swift read one file by its name: what -q --q-bits 4 --q-group-size 32 writes is
model.q4.safetensors, 8 bits in groups of 64 model.q8.safetensors, unquantized model.safetensors. For those two programs
add --max-shard-size 20 where the weights take more than 5 GB.

exit status: 0; 2 on an error, and then nothing is left of the output; 130 when Ctrl-C ends it, likewise.
"""


def _size(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1e-6 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of gigabytes above 0")
    return int(value * 1e9)


def _factor(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a finite number")
    return value


def _parser() -> Parser:
    parser = Parser(
        f"python -m {PROGRAM}", table="convert", epilog=EPILOG,
        description="Convert and quantize: any Moshi checkpoint in, any layout out.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--hf-path", "--model", required=True, metavar="FOLDER_OR_HUB_ID", help="what to convert, in any layout")
    add("--mlx-path", default="mlx_model", type=Path, metavar="FOLDER", help="where to write (default: mlx_model)")
    add("--to", choices=tuple(LAYOUTS), default="mlx", help="layout to write (default: mlx)")
    add("-q", "--quantize", action="store_true", help="quantize")
    add("--q-bits", type=int, metavar="N", help="bits of a weight (default: the mode's, 4 for affine)")
    add("--q-group-size", type=int, metavar="N", help="weights of one scale (default: 32 for 4 bits, else 64)")
    add("--q-mode", choices=tuple(MODES), default="affine", help="default: affine")
    add("--quant-predicate", metavar="RECIPE", 
        help=f"{', '.join(recipes.RECIPES)}, auto (needs --calibrate), or a TOML file of path patterns")  # fmt: skip
    add(
        "--calibrate",
        type=Path,
        metavar="SOUND",
        help="with auto: speech in which it is measured what each layer needs",
    )
    add("--q-budget", type=_size, metavar="GB",
        help="with auto: of the language model (default: what 4 bits in groups of 32, or --q-bits, take)")  # fmt: skip
    add("-d", "--dequantize", action="store_true", help="write a quantized model unquantized")
    add("--dtype", choices=tuple(pipeline.DTYPES), help="type of what is not quantized (default: the source's)")
    add("--lora", type=Path, metavar="FILE", help="adapters in Kyutai's layout to merge (default: those of the config)")
    add(
        "--lora-scaling",
        type=_factor,
        metavar="X",
        help="their factor (default: lora_scaling of the config beside them)",
    )
    add("--generation", type=int, choices=(1, 2), default=1,
        help="with --to kyutai: attention names as published (1), or of newer versions of moshi (2)")  # fmt: skip
    add("--tokenizer", type=Path, metavar="FILE", help="sentencepiece model, where the source has none")
    add("--max-shard-size", type=_size, default=writing.MAX_SHARD_BYTES, metavar="GB", help="of a file (default: 5)")
    add("--overwrite", action="store_true", help="replace the output folder, once the new one is whole")
    add("--dry-run", action="store_true", help="print what would be written and how large, write nothing")
    add("--upload-repo", metavar="HUB_ID", help="upload what was written to this repository")
    return parser


@streams.command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status, which --help describes."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {"inspect": inspecting.main, "compare": comparing.main}
    try:
        with _kill_is_interrupt():
            if argv and argv[0] in commands:
                return commands[argv[0]](argv[1:])
            parser = _parser()
            return convert(_without_idle_settings(parser.parse_args(argv), parser))
    except (MoshiError, OSError) as error:
        return streams.failed(PROGRAM, error)
    except KeyboardInterrupt as stop:
        streams.say(f"{PROGRAM}: interrupted, {stop if str(stop) else 'nothing was written'}")
        return 130


@contextlib.contextmanager
def _kill_is_interrupt() -> Iterator[None]:
    """`kill` ends like Ctrl-C; only the main thread can ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def convert(arguments: argparse.Namespace) -> int:
    """Converts as the flags say."""
    _check_flags(arguments)
    path = arguments.mlx_path
    if not arguments.dry_run:
        folders.refuse_existing(path, arguments.overwrite)
    if arguments.upload_repo:
        hub.check_login(arguments.upload_repo)
    source = open_checkpoint(hub.local_folder(arguments.hf_path, more=("README.md", *pipeline.PROCESSORS)))
    options = _options(arguments, source)
    if not arguments.dry_run:
        folders.refuse_inside(path, *_read_files(source, options))
    outcome = pipeline.prepare(source, options)
    origin = card.origin_of(arguments.hf_path, source.folder)
    about = describing.lines(source.config, source.model_id)
    text = card.card(arguments.to, origin, outcome.quantized, source.config.role, about)
    plan = outcome.plan._replace(small={"README.md": text.encode(), **outcome.plan.small})
    outcome = outcome._replace(plan=plan)
    if arguments.dry_run:
        streams.tell(_report(source, outcome, f"would be written to {path}"))
        return 0
    total = sum(block.nbytes for blocks in plan.weights.values() for block in blocks)
    with progress("converting", total) as done:
        writing.carry_out(plan, path, arguments.overwrite, done)
    streams.tell(_report(source, outcome, f"written to {path}"))
    if arguments.upload_repo:
        streams.tell(f"uploaded to {hub.upload(path, arguments.upload_repo)}")
    return 0


def _read_files(source: Checkpoint, options: Options) -> list[Path]:
    """All that a conversion reads."""
    parts = [source.folder, source.tokenizer, options.tokenizer, options.lora]
    parts += [*source.language.files.values(), *source.mimi.files.values()]
    return [path for path in dict.fromkeys(parts) if path]


def _without_idle_settings(arguments: argparse.Namespace, parser: Parser) -> argparse.Namespace:
    """A person's own settings that mean nothing beside these flags are as if not given; flags are refused instead."""
    idle = {"quantize"} if arguments.dequantize else set()
    if not arguments.quantize or "quantize" in idle & arguments.from_settings:
        idle |= {"q_bits", "q_group_size", "q_mode", "quant_predicate"}
    if arguments.quant_predicate != recipes.AUTO or "quant_predicate" in idle & arguments.from_settings:
        idle |= {"calibrate", "q_budget"}
    idle |= {"max_shard_size"} if arguments.to == "kyutai" else {"generation"}
    idle |= {"upload_repo"} if arguments.dry_run else set()
    for name in idle & arguments.from_settings:
        setattr(arguments, name, parser.get_default(name))
    if arguments.quantize and arguments.dequantize and "dequantize" in arguments.from_settings:
        arguments.dequantize = False
    return arguments


def _check_flags(arguments: argparse.Namespace) -> None:
    """Flags that only mean something beside others: one that would be read by nobody is refused."""
    if arguments.quantize and arguments.dequantize:
        raise InputError("-q and -d: choose one of them")
    given = {
        "--q-bits": arguments.q_bits, "--q-group-size": arguments.q_group_size,
        "--quant-predicate": arguments.quant_predicate,
        "--q-mode": arguments.q_mode if arguments.q_mode != "affine" else None,
    }  # fmt: skip
    for flag, value in given.items():
        if value is not None and not arguments.quantize:
            raise InputError(f"{flag}: needs -q")
    auto = arguments.quant_predicate == recipes.AUTO
    for flag, value in {"--calibrate": arguments.calibrate, "--q-budget": arguments.q_budget}.items():
        if value is not None and not auto:
            raise InputError(f"{flag}: needs -q --quant-predicate auto")
    if auto and arguments.calibrate is None:
        raise InputError("--quant-predicate auto: needs --calibrate SOUND, speech in which it is measured")
    if auto and not arguments.calibrate.is_file():
        raise InputError(f"--calibrate: {arguments.calibrate}: no such sound file")
    if arguments.quantize:  # before anything is downloaded
        usual = recipes.general(arguments.q_bits, arguments.q_group_size, arguments.q_mode)
        recipes.rule_of(arguments.quant_predicate, usual, arguments.q_bits is not None)
    if arguments.generation != 1 and arguments.to != "kyutai":
        raise InputError("--generation: needs --to kyutai")
    if arguments.max_shard_size != writing.MAX_SHARD_BYTES and arguments.to == "kyutai":
        raise InputError("--max-shard-size: Kyutai's PyTorch layout is one file")
    if arguments.upload_repo and arguments.dry_run:
        raise InputError("--upload-repo: nothing is written with --dry-run, so nothing can be uploaded")


def _options(arguments: argparse.Namespace, source: Checkpoint) -> Options:
    adapters = _lora(arguments.lora, source)
    if arguments.lora_scaling is not None and adapters is None:
        raise InputError("--lora-scaling: there are no adapters; give them by --lora")
    return Options(
        to=arguments.to, quantize=arguments.quantize, bits=arguments.q_bits, group_size=arguments.q_group_size,
        mode=arguments.q_mode, predicate=arguments.quant_predicate, calibrate=arguments.calibrate,
        budget=arguments.q_budget, dequantize=arguments.dequantize,
        dtype=arguments.dtype, lora=adapters, lora_scaling=arguments.lora_scaling,
        generation=arguments.generation, max_shard_bytes=arguments.max_shard_size,
        tokenizer=_tokenizer(arguments.tokenizer, source),
    )  # fmt: skip


def _lora(given: Path | None, source: Checkpoint) -> Path | None:
    """The adapters: those asked for, here or in the source's folder; else those that its config names."""
    if given is not None:
        found = next((path for path in (given, source.folder / given) if path.is_file()), None)
        if found is None:
            raise InputError(f"--lora: no file {given}, neither here nor in {source.folder}")
        return found
    named = source.lora.get("lora_name")
    return hub.local_file(source.folder, named) if named else None


def _tokenizer(given: Path | None, source: Checkpoint) -> Path | None:
    """The tokenizer that replaces the source's; where a model of Moshi's vocabulary has none, Kyutai's own."""
    if given is not None:
        if not given.is_file():
            raise InputError(f"--tokenizer: no file {given}")
        return given
    return moshi_tokenizer(source)


def _report(source: Checkpoint, outcome: Outcome, done: str) -> str:
    """What was or would be written, file by file."""
    sizes = outcome.plan.sizes()
    lines = [f"{source.folder}: {LAYOUTS[source.layout]}; {done}:"]
    lines += [f"  {name}  {size(count)}" for name, count in sizes.items()]
    lines.append(f"  in all {size(sum(sizes.values()))}")
    lines.append(f"  language model: {inspecting.bits_per_weight(outcome.plan, outcome.quantized):.3g} bits per weight")
    lines += [f"  calibrated: {outcome.measured}"] if outcome.measured else []
    lines += [f"  {line}" for line in inspecting.bits_lines(outcome.quantized)]
    lines += [
        f"  not quantized, rows are no multiple of the group size: {path}"
        for path in inspecting.collapsed(outcome.kept)
    ]
    return "\n".join(lines)
