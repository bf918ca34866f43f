"""What every model class here can do besides computing: count and share its parameters, write itself, train in less."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .. import inputs
from ..errors import InputError
from ..models.layers.linear import Embedding, resting
from ..models.layers.transformer import Transformer
from . import pretrained


class Methods:
    """The methods of transformers' PreTrainedModel that real programs call, for modules of MLX."""

    config: Any

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the weights hold, shared ones once; of quantized ones those that they stand for."""
        return sum(
            size
            for module, name, size in _weights(self)
            if not (only_trainable and name in module._no_grad)
            if not (exclude_embeddings and isinstance(module, Embedding))
        )

    def get_input_embeddings(self) -> Embedding:
        """The table that input_ids are looked up in: text first, then the rows of every audio stream."""
        helium = next((m for _, m in self.named_modules() if "embed_tokens" in m), None)  # type: ignore[attr-defined]
        if helium is None:
            raise InputError(f"{type(self).__name__}: has no input embeddings; expected a model with a text table")
        return helium.embed_tokens

    def get_output_embeddings(self) -> nn.Module | None:
        """The text head, where there is one."""
        return next((m.lm_head for _, m in self.named_modules() if "lm_head" in m), None)  # type: ignore[attr-defined]

    def resize_token_embeddings(self, new_num_tokens: int | None = None) -> Embedding:
        """Give the text another vocabulary: new tokens get the mean of the old rows, the initial token stays last.

        new_num_tokens is the new `config.vocab_size`, which the text head, the depth decoder and the config get too
        (None: nothing changes); `.tokenizer` is another vocabulary's then, and let go. -> the table. Raises InputError
        for a quantized model.
        """
        table = self.get_input_embeddings()
        if new_num_tokens is not None:
            _resize(self, inputs.whole("new_num_tokens", new_num_tokens, 1))
        return table

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
        """Compute the layers of the temporal transformer anew in the backward pass: less memory, a third more time."""
        _set_checkpointing(self, True)

    def gradient_checkpointing_disable(self) -> None:
        """Keep what the layers computed for the backward pass, as it is from the start."""
        _set_checkpointing(self, False)

    @property
    def is_gradient_checkpointing(self) -> bool:
        return any(transformer.checkpointing for transformer in _transformers(self))

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write a folder in Hugging Face's layout, which transformers loads as its own and `from_pretrained` here.

        A folder that holds something is refused unless `overwrite`. Raises InputError, and ConfigError for a model that
        transformers could not run as it is (other delays, say).
        """
        pretrained.save(self, folder, overwrite)


def _weights(model: Any) -> Iterator[tuple[Any, str, int]]:
    """(module, name, numbers) of every weight, of shared modules and arrays once; what is derived is left out."""
    seen: set[int] = set()
    for _, module in model.named_modules():
        bits = module.bits if "scales" in module else 32
        for name, value in module.items():
            if name in ("scales", "biases", "half_norms"):
                continue
            for array in value if isinstance(value, list) else [value]:
                if isinstance(array, mx.array) and id(array) not in seen:
                    seen.add(id(array))
                    yield module, name, array.size * 32 // bits if name == "weight" else array.size


def _transformers(model: Any) -> list[Transformer]:
    """The temporal transformer's; the codec, which is frozen, and the depth decoder keep theirs."""
    return [m.transformer for _, m in model.named_modules() if "embed_tokens" in m]


def _set_checkpointing(model: Any, value: bool) -> None:
    for transformer in _transformers(model):
        transformer.checkpointing = value


def _resize(model: Any, size: int) -> None:
    modules = [module for _, module in model.named_modules()]
    changed = [(m, "embed_tokens") for m in modules if "embed_tokens" in m]
    changed += [(m.slices[0], "emb") for m in modules if "slices" in m]
    heads = [m for m in modules if "lm_head" in m]
    if any("scales" in place[name] for place, name in changed) or any("scales" in m.lm_head for m in heads):
        raise InputError("resize_token_embeddings: got a quantized model, expected one in full precision")
    old = model.config.vocab_size
    if size == old:
        return
    for place, name in changed:
        place[name].weight = _resized(place[name].weight, old, size)
    for module in heads:
        module.lm_head.weight = resting(_resized(module.lm_head.weight.T, old, size))
    for module in modules:
        if getattr(module, "tokenizer", None) is not None:
            module.tokenizer = None
        config = getattr(module, "config", None)
        for one in (config, getattr(config, "depth_decoder_config", None)):
            if hasattr(one, "vocab_size"):
                object.__setattr__(one, "vocab_size", size)


def _resized(table: mx.array, old: int, size: int) -> mx.array:
    """table [rows, ...] of which the first `old` are of the text -> the first `size` are, the others behind them."""
    text, rest = table[:old], table[old:]
    more = mx.broadcast_to(text.astype(mx.float32).mean(axis=0, keepdims=True), (max(0, size - old), *text.shape[1:]))
    return mx.concatenate([text[:size], more.astype(table.dtype), rest])
