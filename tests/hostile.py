"""Damaged and hostile files for property-based tests: what a reader is fed, and what it may answer.

A reader of files either reads one or raises an error of this package that says in one line of sensible length which
file is wrong; nothing else, whatever the bytes. A test of a reader is

    @hostile.bounded
    @given(change=hostile.damage())
    def test_it(tmp_path_factory, change): ...

Examples are drawn from a fixed seed, so that a run is the same everywhere; what has once been found goes into the test
as an @example. EXAMPLES=2000 in the environment draws as many, from another seed each time.
"""

import json
import os
import struct

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from moshi_mlx import MoshiError

bounded = settings(
    max_examples=int(os.environ.get("EXAMPLES", "60")), derandomize="EXAMPLES" not in os.environ, deadline=None,
    database=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

numbers = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([2**15, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(2**31)]),
    st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([0.0, -0.0, 1e-320, 1e300, 0.5, 2.0]),
)  # fmt: skip
texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["/etc/passwd", "../x", "", ".", "hf://a", "file://x", "a\0b", "x" * 300, "F64", "U8", "F32", "\ud800"]
    ),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip


@st.composite
def damage(draw):
    """A function from the content of a file to a damaged one: bytes flipped, cut, doubled, or put elsewhere."""
    kind = draw(st.sampled_from(["flip", "cut", "insert", "double", "zero", "empty"]))
    at, length = draw(st.floats(0, 1)), draw(st.integers(1, 64))
    near, some = draw(st.booleans()), draw(st.binary(min_size=1, max_size=16))

    def apply(content):
        place = int(at * (min(len(content), 400) if near else len(content)))
        if kind == "flip":
            return content[:place] + some + content[place + len(some) :]
        if kind == "cut":
            return content[:place]
        if kind == "insert":
            return content[:place] + some + content[place:]
        if kind == "double":
            return content[:place] + content[max(0, place - length) : place] + content[place:]
        return content[:place] + bytes(length) + content[place + length :] if kind == "zero" else b""

    return apply


@st.composite
def change(draw):
    """A function that changes a JSON object somewhere: another value, one key less, one key more."""
    at, value, kind, key = (
        draw(st.floats(0, 1)),
        draw(values),
        draw(st.sampled_from(["set", "set", "drop", "add"])),
        draw(texts),
    )

    def apply(content):
        changed = json.loads(json.dumps(content))
        places = list(_places(changed))
        owner, name = places[int(at * (len(places) - 1))] if places else (changed, key)
        if kind == "set":
            owner[name] = value
        elif kind == "drop" and places:
            del owner[name]
        elif isinstance(owner, dict):
            owner[key] = value
        return changed

    return apply


def _places(content):
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield content, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def changed_json(content, apply):
    """JSON bytes after a change."""
    return json.dumps(apply(json.loads(content))).encode("utf-8", "surrogatepass")


def changed_header(content, apply):
    """A safetensors file after a change of its header."""
    length = struct.unpack("<Q", content[:8])[0]
    text = changed_json(content[8 : 8 + length], apply)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def read_or_named(read, *args, **kwargs):
    """What a reader gives; None where it refuses the file as it must. Everything else fails the test."""
    try:
        return read(*args, **kwargs)
    except MoshiError as error:
        message = str(error)
    if "\n" in message or not 0 < len(message) < 1000:
        pytest.fail(f"not a line of sensible length: {message[:2000]!r}")
    return None
