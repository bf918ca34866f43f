"""The rules of generate: each against a plain definition of it over the model's own logits, in text and in dialogue."""

import mlx.core as mx
import numpy as np
import pytest
from helpers import golden

from moshi_mlx import InputError
from moshi_mlx.huggingface.rules import drawn_from
from moshi_mlx.models.sampling import Sampling

FORWARD, HF = golden("huggingface_forward"), golden("huggingface")
IDS = FORWARD["ids"][:2, :5]
PROMPT = {name: HF[f"prompt6.{name}"] for name in ("input_ids", "user_audio_codes", "moshi_audio_codes")}
NEW = 8


@pytest.fixture(autouse=True)
def eager():
    mx.disable_compile()
    yield
    mx.enable_compile()


def plain(model, rule, eos=()):
    """Greedy text of each row of IDS by the definition: logits of the whole row so far, `rule` applied, the largest."""
    rows = []
    for row in IDS.tolist():
        for _ in range(NEW):
            logits = np.array(model.decoder([row]).logits)[0, -1].astype(np.float64)
            rule(logits, row, len(row) - IDS.shape[1])
            row = [*row, int(logits.argmax())]
            if row[-1] in eos:
                break
        rows.append(row)
    return rows


def text(model, **settings):
    return np.array(model.decoder.generate(IDS, max_new_tokens=NEW, **settings)).tolist()


def penalised(penalty):
    def rule(logits, row, new):
        for token in set(row):
            logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty

    return rule


@pytest.mark.parametrize("penalty", [1.3, 5.0, 0.5])
def test_repetition_penalty(model, penalty):
    assert text(model, repetition_penalty=penalty) == plain(model, penalised(penalty))
    assert text(model, repetition_penalty=1.0) == text(model)


def test_suppressed_tokens(model):
    said = sorted({token for row in text(model) for token in row[5:]})[:3]

    def rule(logits, row, new):
        logits[said] = -np.inf

    for form in (said, np.array(said), mx.array(said)):
        assert text(model, suppress_tokens=form) == plain(model, rule)


def test_sequences_that_must_not_come(model):
    before = text(model)[0]
    words = [before[5:8], [before[9]], before[4:6]]

    def rule(logits, row, new):
        for *first, last in words:
            if not first or row[-len(first) :] == first:
                logits[last] = -np.inf

    assert text(model, bad_words_ids=words) == plain(model, rule)
    assert text(model, bad_words_ids=words) != text(model)


def test_ends(model):
    """One token or several; the last rows fill; none before min_new_tokens."""
    before = text(model)
    ends = [before[0][7], before[1][10]]
    rows = plain(model, lambda *_: None, ends)
    longest = max(map(len, rows))
    for form in (ends, tuple(ends), np.array(ends), mx.array(ends)):
        assert text(model, eos_token_id=form) == [row + [ends[0]] * (longest - len(row)) for row in rows]
    assert text(model, eos_token_id=ends, pad_token_id=3) == [row + [3] * (longest - len(row)) for row in rows]
    single = np.int64(ends[0])
    assert text(model, eos_token_id=single) == text(model, eos_token_id=[int(single)])

    def rule(logits, row, new):
        if new < 6:
            logits[ends] = -np.inf

    later = plain(model, rule, ends)
    longest = max(map(len, later))
    assert text(model, eos_token_id=ends, min_new_tokens=6) == [r + [ends[0]] * (longest - len(r)) for r in later]
    assert text(model, min_new_tokens=6) == before


def test_scores_and_logits(model):
    settings = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    out = model.decoder.generate(IDS, max_new_tokens=3, repetition_penalty=2.0, **settings)
    assert out.sequences.tolist() == text(model, repetition_penalty=2.0) or out.sequences.shape == (2, 8)
    assert len(out.scores) == len(out.logits) == 3
    for n in range(3):
        raw = np.array(model.decoder(out.sequences[:, : 5 + n]).logits)[:, -1]
        np.testing.assert_allclose(np.array(out.logits[n]), raw, atol=1e-3)
        for row in range(2):
            penalised(2.0)(raw[row], np.array(out.sequences)[row, : 5 + n].tolist(), n)
        np.testing.assert_allclose(np.array(out.scores[n]), raw, atol=1e-3)
        assert np.array(out.scores[n]).argmax(-1).tolist() == np.array(out.sequences)[:, 5 + n].tolist()
    drawn = model.decoder.generate(IDS, max_new_tokens=2, do_sample=True, top_k=4, temperature=0.5, **settings)
    for scores, logits in zip(drawn.scores, drawn.logits, strict=True):
        assert (np.isfinite(np.array(scores)).sum(axis=-1) == 4).all()
        kept = np.isfinite(np.array(scores))
        np.testing.assert_allclose(np.array(scores)[kept], (np.array(logits) / 0.5)[kept], rtol=1e-5)
    assert "scores" not in model.decoder.generate(IDS, max_new_tokens=1, return_dict_in_generate=True)


def test_what_is_drawn_from():
    logits = np.log(np.array([[0.05, 0.4, 0.1, 0.25, 0.2]], np.float32))

    def kept(**settings):
        return np.flatnonzero(np.isfinite(drawn_from(logits, Sampling(**settings))[0])).tolist()

    assert kept() == [0, 1, 2, 3, 4]
    assert kept(top_k=2) == [1, 3]
    assert kept(top_p=0.6) == [1, 3]
    assert kept(min_p=0.45) == [1, 3, 4]
    assert kept(top_k=3, top_p=0.7) == [1, 3]
    assert kept(temperature=0) == [0, 1, 2, 3, 4]


def dialogue(model, **settings):
    return model.generate(**PROMPT, max_new_tokens=NEW, do_sample=False, return_audio_codes=True, **settings)


def test_rules_hold_in_dialogue(model):
    out = dialogue(model, return_dict_in_generate=True, output_logits=True, output_scores=True)
    before = np.array(out.sequences)
    assert (np.array(mx.stack(out.logits, axis=1)).argmax(-1) == before[:, 7:]).all()
    for n, suppressed in enumerate(({int(before[0, 7])}, {int(t) for t in before[:, 7:].ravel()} - {3})):
        changed = dialogue(model, suppress_tokens=sorted(suppressed), output_logits=True, output_scores=True)
        said = np.array(changed.sequences)[:, 7:]
        assert not np.isin(said, list(suppressed)).any(), n
        raw = np.array(mx.stack(changed.logits, axis=1))
        raw[..., sorted(suppressed)] = -np.inf
        np.testing.assert_array_equal(raw.argmax(-1), said)
        np.testing.assert_allclose(np.array(mx.stack(changed.scores, axis=1)), raw, atol=1e-5)
    punished = dialogue(model, repetition_penalty=4.0, output_logits=True)
    rows = [PROMPT["input_ids"][row].tolist() for row in range(2)]
    for n, logits in enumerate(punished.logits):
        for row in range(2):
            mine = np.array(logits)[row].astype(np.float64)
            penalised(4.0)(mine, [t for t in rows[row] if 0 <= t < 64], n)
            rows[row].append(int(mine.argmax()))
            assert rows[row][-1] == np.array(punished.sequences)[row, 7 + n]


def test_dialogue_ends(model):
    before = np.array(dialogue(model).sequences)[:, 7:]
    ends = [int(before[0, 2]), int(before[1, 4])]
    out = dialogue(model, eos_token_id=ends)
    first = [int(np.flatnonzero(np.isin(row, ends))[0]) for row in before]
    said = np.array(out.sequences)[:, 7:]
    assert said.shape[1] == max(first) + 1
    for row, end in enumerate(first):
        np.testing.assert_array_equal(said[row, : end + 1], before[row, : end + 1])
        assert (said[row, end + 1 :] == ends[0]).all()
    assert out.audio_codes.shape[2] == 6 + said.shape[1] - 1
    assert dialogue(model, eos_token_id=ends, min_new_tokens=NEW).sequences.shape[1] == 7 + NEW
    plain = model.generate(**PROMPT, max_new_tokens=NEW, do_sample=False, return_audio_waveforms=False,
                           eos_token_id=ends)  # fmt: skip
    np.testing.assert_array_equal(np.array(plain), np.array(out.sequences))


def test_the_codes_go_by_either_prefix(model):
    either = [
        np.array(model.generate(**PROMPT, max_new_tokens=4, return_audio_codes=True, **{f"{p}do_sample": False,
                 "do_sample": False}).audio_codes) for p in ("depth_", "depth_decoder_")
    ]  # fmt: skip
    np.testing.assert_array_equal(*either)
    with pytest.raises(InputError, match="depth_decoder_top_k: got it beside depth_top_k"):
        model.generate(max_new_tokens=1, depth_decoder_top_k=1, depth_top_k=2)
    with pytest.raises(InputError, match="depth_temperature: got -1"):
        model.generate(max_new_tokens=1, depth_decoder_temperature=-1)


BOTH = {
    "text": lambda m, **s: m.decoder.generate(IDS, max_new_tokens=1, **s),
    "dialogue": lambda m, **s: m.generate(max_new_tokens=1, **s),
}


@pytest.mark.parametrize("door", BOTH)
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("eos_token_id", [64, -1, 1.5, [3, 64], [[1]], "a", [1.0], True, np.float32(3)]),
        ("pad_token_id", [65, -1, 1.5, "a"]),
        ("min_new_tokens", [-1, 1.5, "a", True]),
        ("repetition_penalty", [0, -1, np.nan, np.inf, 1e39, "a", True, 1e-46]),
        ("suppress_tokens", [[64], [-1], [1.5], "a", [[1], [1, 2]]]),
        ("bad_words_ids", [[64], [[64]], [[-1]], [[]], 3, "ab", [["a"]], [[1.5]]]),
    ],
)
def test_what_is_no_rule_is_named(model, door, name, values):
    for value in values:
        if name == "bad_words_ids" and value == [64]:
            value = [[1], [64]]
        with pytest.raises(InputError, match=rf"^{name}: got "):
            BOTH[door](model, **{name: value})
