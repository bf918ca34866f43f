"""Which matrix is quantized how: one quantization for all, a recipe by name, or patterns of paths from a TOML file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from moshi_mlx.checkpoints import layouts
from moshi_mlx.checkpoints.disk.files import check_depth, read_text
from moshi_mlx.checkpoints.quantization import MODES, Quantization, checked
from moshi_mlx.errors import ConfigError, InputError, brief, clipped
from moshi_mlx.models.config import MoshiConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Bits of the temporal transformer, and of what is smaller and is felt sooner: depth decoder, embeddings, heads.
AUTO = "auto"  # by what `calibrating` measures
RECIPES = {"mixed_4_8": (4, 8), "mixed_3_6": (3, 6), "mixed_4_6": (4, 6)}
# Bits and groups that `auto` chooses from; below 3 bits a layer is no longer near itself.
CHOICES = {3: (64,), 4: (64, 32), 5: (64,), 6: (64,), 8: (64,)}
FINER = {mode: Quantization(8, 32, "mxfp8") for mode in ("mxfp4", "nvfp4")}  # what goes beside a mode of 4 bits
TEMPORAL = "transformer.layers."
Rule = Callable[[str], Quantization | None]


def general(bits: int | None, group_size: int | None, mode: str) -> Quantization:
    """The quantization that flags ask for. Kyutai's groups are the usual ones: 32 for 4 bits, else 64."""
    if mode not in MODES:
        raise InputError(f"--q-mode: got {mode!r}, expected one of {', '.join(MODES)}")
    bits = MODES[mode][0][0] if bits is None else bits
    if group_size is None:
        group_size = 32 if (mode, bits) == ("affine", 4) else MODES[mode][1][0]
    return checked(bits, group_size, mode, "quantization")


def choices(usual: Quantization, group_size: int | None) -> list[Quantization]:
    """What `auto` chooses from, in the mode and, where it was asked for, the group size. Raises InputError."""
    if usual.mode in FINER:
        return [usual, FINER[usual.mode]]
    if usual.mode != "affine":
        raise InputError(f"--quant-predicate auto: {usual.mode} has one width; use affine, mxfp4 or nvfp4")
    if group_size is not None:
        return [usual._replace(bits=bits) for bits in CHOICES]
    return [Quantization(bits, size) for bits, sizes in CHOICES.items() for size in sizes]


def rule_of(predicate: str | None, usual: Quantization, explicit_bits: bool) -> Rule:
    """What `--quant-predicate` says of a path: a recipe's name, or a TOML file; without it everything is `usual`."""
    if predicate is None:
        return lambda path: usual
    if predicate == AUTO:
        choices(usual, None)
        return lambda path: usual
    if predicate.endswith(".toml"):
        return _patterns(Path(predicate), usual)
    if predicate not in RECIPES:
        raise InputError(
            f"--quant-predicate: got {brief(predicate)}, expected {AUTO}, {', '.join(RECIPES)}, or a file that ends in "
            ".toml"
        )
    if explicit_bits:
        raise InputError(f"--quant-predicate {predicate} has bits of its own; leave out --q-bits")
    low, high = (usual._replace(bits=bits) for bits in RECIPES[predicate])
    if usual.mode != "affine":
        if usual.mode not in FINER or RECIPES[predicate] != (usual.bits, FINER[usual.mode].bits):
            raise InputError(
                f"--quant-predicate {predicate}: {usual.mode} has no such bits; mixed_4_8 has for mxfp4, nvfp4"
            )
        low, high = usual, FINER[usual.mode]
    return lambda path: low if path.startswith(TEMPORAL) else high


class _patterns:
    """Paths to quantizations by the first pattern that matches; the keys of the TOML file, in its order."""

    def __init__(self, path: Path, usual: Quantization) -> None:
        try:
            values = tomllib.loads(read_text(path, InputError))
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: cannot be read as TOML ({clipped(str(error))})") from error
        check_depth(values, path, InputError)
        self.path, self.usual, self.used = path, usual, set[str]()
        self.kinds = {pattern: self._kind(pattern, value) for pattern, value in values.items()}

    def _kind(self, pattern: str, value: Any) -> Quantization | None:
        where = f"{self.path}: {brief(pattern)}"
        if value is False:
            return None
        table = {"bits": value} if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(table, dict) or set(table) - {"bits", "group_size", "mode"}:
            raise InputError(
                f"{where}: got {brief(value)}, expected a number of bits, false, or {{bits = 4, group_size = 32, "
                'mode = "affine"}; put a pattern that has dots in quotation marks'
            )
        mode = table.get("mode", self.usual.mode)
        usual = (
            self.usual
            if mode == self.usual.mode or not isinstance(mode, str) or mode not in MODES
            else general(None, None, mode)
        )
        return checked(table.get("bits", usual.bits), table.get("group_size", usual.group_size), mode, where)

    def __call__(self, path: str) -> Quantization | None:
        for pattern, kind in self.kinds.items():
            if fnmatchcase(path, pattern):
                self.used.add(pattern)
                return kind
        return self.usual

    def finish(self) -> None:
        unused = [pattern for pattern in self.kinds if pattern not in self.used]
        if unused:
            raise InputError(f"{self.path}: {brief(unused[0])} matches no matrix that earlier patterns left")


def assign(
    shapes: Mapping[str, tuple[int, ...]], rule: Rule, config: MoshiConfig
) -> tuple[dict[str, Quantization | None], list[str]]:
    """How each matrix is quantized by a rule, and the paths of those that it cannot quantize: no whole groups.

    Raises ConfigError where tables or matrices that are one array when loaded would be quantized differently.
    """
    kinds: dict[str, Quantization | None] = {}
    kept: list[str] = []
    whole = layouts.kept_whole(config)
    for name, shape in shapes.items():
        if len(shape) == 2:
            path = name.removesuffix(".weight")
            kind = None if path in whole else rule(path)
            kinds[path] = kind if kind and kind.fits(shape[1]) else None
            if kind and not kinds[path]:
                kept.append(path)
    if isinstance(rule, _patterns):
        rule.finish()
    for row in layouts.kyutai_mlx(config):
        first, *others = (name.removesuffix(".weight") for name in row.theirs)
        for other in others:
            if kinds[first] != kinds[other]:
                raise ConfigError(
                    f"quantization: {first!r} would be {kinds[first] or 'unquantized'} and {other!r} "
                    f"{kinds[other] or 'unquantized'}; they are read as one table, so give both the same"
                )
    return kinds, kept
