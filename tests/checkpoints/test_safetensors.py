"""The one door for files of tensors: as strict as the format's own reader, whoever asks."""

import json
import os
import struct
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx import CheckpointError
from moshi_mlx.checkpoints.safetensors import load_lazily, read_header, read_metadata, stored

A = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
B = {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]}
DATA = np.arange(22, dtype=np.uint8).tobytes()
READERS = (read_header, read_metadata, stored, load_lazily)


def raw(path, header, data=DATA, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_what_is_right_is_read(tmp_path):
    path = raw(tmp_path / "a", {"__metadata__": {"format": "pt"}, "a": A, "b": B})
    assert read_metadata(path) == {"format": "pt"}
    assert {name: tuple(info) for name, info in read_header(path).items()} == {
        "a": ("F32", (2, 2)),
        "b": ("BF16", (3,)),
    }
    assert stored(path)["b"].read().tobytes() == DATA[16:]
    np.testing.assert_array_equal(load_lazily(path)["a"], np.frombuffer(DATA[:16], np.float32).reshape(2, 2))
    raw(path, json.dumps({"b": B, "a": A}).encode() + b"  \n")  # padded, in another order
    assert set(read_header(path)) == {"a", "b"}
    empty = {"dtype": "F32", "shape": [0, 4], "data_offsets": [16, 16]}
    assert stored(raw(path, {"a": A, "empty": empty, "b": B}))["empty"].read().shape == (0, 4)
    scalar = {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}
    assert stored(raw(path, {"s": scalar}, DATA[:4]))["s"].read().shape == ()
    assert read_header(raw(path, {}, b"")) == {}


def changed(tensor, **values):
    return {"a": {**A, **values}, "b": B} if tensor == "a" else {"a": A, "b": {**B, **values}}


BAD = {
    "two on the same bytes": (changed("b", data_offsets=[10, 16]), DATA),
    "wholly the same bytes": ({"a": A, "b": A}, DATA[:16]),
    "a gap": (changed("b", data_offsets=[18, 24]), DATA + b"xx"),
    "a gap before the first": ({"b": {**B, "data_offsets": [2, 8]}}, DATA[:8]),
    "bytes behind the last": ({"a": A, "b": B}, DATA + b"x"),
    "cut short": ({"a": A, "b": B}, DATA[:-1]),
    "no tensor, but bytes": ({}, DATA),
    "turned round": (changed("b", data_offsets=[22, 16]), DATA),
    "too few bytes for the shape": (changed("b", shape=[4]), DATA),
    "a negative size": (changed("a", shape=[-2, -2]), DATA),
    "a negative span": (changed("a", data_offsets=[-16, 0]), DATA),
    "a size of 4.0": (changed("a", shape=[2.0, 2]), DATA),
    "a span of 16.0": (changed("a", data_offsets=[0, 16.0]), DATA),
    "a size of true": (changed("a", shape=[True, 4]), DATA),
    "a size as a text": (changed("a", shape=["2", 2]), DATA),
    "a shape that is no list": (changed("a", shape=4), DATA),
    "a span of three": (changed("a", data_offsets=[0, 16, 16]), DATA),
    "a size beyond every file": (changed("a", shape=[2**63, 2]), DATA),
    "a size beyond every number": (changed("a", shape=[2**64, 0]), DATA),
    "a product beyond every file": (changed("a", shape=[2**62, 2**62]), DATA),
    "no type": (changed("a", dtype=None), DATA),
    "an unknown type": (changed("a", dtype="F8_E4M3"), DATA),
    "a type that is no text": (changed("a", dtype=["F32"]), DATA),
    "an entry that is no object": ({"a": [1, 2], "b": B}, DATA),
    "a number in the metadata": ({"__metadata__": {"step": 100}, "a": A, "b": B}, DATA),
    "metadata that is a list": ({"__metadata__": ["a"], "a": A, "b": B}, DATA),
    "metadata within metadata": ({"__metadata__": {"a": {"b": "c"}}, "a": A, "b": B}, DATA),
    "a name twice": (b'{"a": %s, "a": %s}' % (json.dumps(A).encode(), json.dumps(B).encode()), DATA),
    "a key twice": (b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}', DATA[:16]),
    "a list": (b"[]", DATA),
    "space before the object": (b" " + json.dumps({"a": A, "b": B}).encode(), DATA),
    "more behind the object": (json.dumps({"a": A, "b": B}).encode() + b"{}", DATA),
    "NaN": (b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 16]}}', DATA[:16]),
    "not UTF-8": (b'{"\xff": %s}' % json.dumps(A).encode(), DATA[:16]),
    "too deep": (b'{"a":' * 100_000, DATA),
    "a number of a million digits": (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 10**6 + b"]}}", DATA),
    "no header": (b"", DATA),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named(tmp_path, name):
    path = raw(tmp_path / "a.safetensors", *BAD[name])
    for reader in READERS:
        with pytest.raises(CheckpointError) as caught:
            reader(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500 + len(str(path))


def test_every_length_byte(tmp_path):
    """One changed byte of a size, and the file is another one: it is never read."""
    header = json.dumps({"a": A, "b": B}).encode()
    path = raw(tmp_path / "a", header)
    whole = bytearray(path.read_bytes())
    digits = [i for i in range(8 + len(header)) if i < 8 or (chr(whole[i]).isdigit() and chr(whole[i - 1]) != "F")]
    for at in digits:
        for value in {(whole[at] + 1) % 256, whole[at] ^ 1, ord("9")} - {whole[at]}:
            path.write_bytes(bytes([*whole[:at], value, *whole[at + 1 :]]))
            with pytest.raises(CheckpointError):
                stored(path)


def test_headers_have_a_limit(tmp_path):
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 200_000_000) + b"{")
        file.truncate(300_000_000)
    with pytest.raises(CheckpointError, match="a header of 200000000 bytes"):
        read_header(path)


def places(tmp_path):
    """What is no file of tensors, by kind."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    yield from (tmp_path / name for name in ("fifo", "folder", "loop", "nowhere", "none", "file", "file/below"))
    yield from (tmp_path / ("x" * 300), tmp_path / "a\0b", Path("/dev/null"), Path("/dev/zero"))


def test_what_is_no_file(tmp_path):
    for path in places(tmp_path):
        for reader in READERS:
            with pytest.raises(CheckpointError):
                reader(path)


def test_float64_comes_as_float32(tmp_path):
    values = np.array([[1.5, -2.25], [1e-9, np.nan]])
    entry = {"dtype": "F64", "shape": [2, 2], "data_offsets": [0, 32]}
    path = raw(tmp_path / "a", {"a": entry}, values.tobytes())
    assert read_header(path)["a"].dtype == stored(path)["a"].info.dtype == "F32"
    np.testing.assert_array_equal(stored(path)["a"].read(), values.astype(np.float32))
    assert load_lazily(path)["a"].dtype == mx.float32
    raw(path, {"a": entry}, np.array([[1e300, 0], [0, 0]]).tobytes())
    with pytest.raises(CheckpointError, match="float32, in which MLX works, cannot hold"):
        load_lazily(path)
