"""The miniature's language model before training: its tokenizer and its first weights."""

from __future__ import annotations

import io
import random

import mlx.core as mx
import sentencepiece

from moshi_mlx import MimiModel, MoshiForConditionalGeneration
from moshi_mlx.models.state import flatten, unflatten

from .sizes import LANGUAGE, PIECES
from .talk.script import answers, exchanges, sentence, spoken


def tokenizer() -> bytes:
    """A sentencepiece model of PIECES pieces, with each word of an answer as a piece; ids 0 and 3 as in Moshi's own."""
    rng, model = random.Random("tokenizer"), io.BytesIO()
    words = sorted({word.strip(".,") for answer in answers() for word in answer.split()})
    texts = answers() + [spoken(exchange, rng) for exchange in exchanges()] + [sentence(rng) for _ in range(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=PIECES, model_type="bpe",
        user_defined_symbols=[f"\u2581{word}" for word in words], normalization_rule_name="identity",
        unk_id=0, bos_id=1, eos_id=2, pad_id=3, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def initialize(model: MoshiForConditionalGeneration, seed: int) -> None:
    """First weights: products of variance 1, rows whose sum over all streams has variance 1, quiet branches."""
    key, fresh = mx.random.key(seed), []
    for name, value in flatten(model.parameters()):
        if name.startswith("audio_encoder"):
            continue
        if value.ndim != 2:
            fresh.append((name, mx.ones(value.shape)))
            continue
        key, now = mx.random.split(key)
        spread = (1 + len(LANGUAGE.audio_delays)) ** -0.5 if "emb" in name else value.shape[0] ** -0.5
        quiet = 0.3 if name.endswith(("out_proj.weight", "linear_out.weight")) else 1.0
        fresh.append((name, quiet * spread * mx.random.normal(value.shape, key=now)))
    model.update(unflatten(fresh))
    mx.eval(model.parameters())


def listen(model: MoshiForConditionalGeneration, seed: int) -> None:
    """Begin with what the codec knows of its codes: like sounds get like embeddings.

    The embeddings of a frame's codes add up to a projection of the codec's quantized latent.
    """
    books, config, table = model.audio_encoder.quantizer.embedding, model.config, model.decoder.model.embed_tokens
    semantic, keys = model.audio_encoder.quantizer.num_semantic, mx.random.split(mx.random.key(seed + 1), 2)
    projected = []
    for part, key in zip((books[:semantic], books[semantic:]), keys, strict=True):
        power = mx.square(part).sum(axis=(0, 2)).mean()  # of the sum of an entry of each
        share = len(part) / (1 + len(config.audio_delays))
        normal = mx.random.normal((part.shape[2], config.hidden_size), key=key)
        projected += list(part @ (normal * mx.sqrt(share / power)))
    weight, first = table.weight, config.table_rows[0]
    for stream, rows in enumerate(config.table_rows[1:]):
        entries = projected[stream % len(projected)]
        weight[first : first + len(entries)] = entries
        first += rows
    table.weight = weight


def new(codec: MimiModel, seed: int = 0) -> MoshiForConditionalGeneration:
    """An untrained language model around a trained codec."""
    model = MoshiForConditionalGeneration(LANGUAGE)
    initialize(model, seed)
    model.audio_encoder = codec
    listen(model, seed)
    model.tokenizer = sentencepiece.SentencePieceProcessor(model_proto=tokenizer())
    return model
