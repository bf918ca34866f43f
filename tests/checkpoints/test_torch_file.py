"""Files that PyTorch saved, read without it: nothing of a file is executed, and a hostile one is refused by name."""

import builtins
import io
import os
import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest
from helpers import GOLDENS

from moshi_mlx import CheckpointError
from moshi_mlx.checkpoints.personas import torch_file
from moshi_mlx.checkpoints.personas.voices import read_voice

GOOD = GOLDENS / "personaplex_bfloat16.pt"


def entries(path=GOOD):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def pickle_name():
    return next(name for name in entries() if name.endswith("data.pkl"))


def zipped(changes, compression=zipfile.ZIP_STORED):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for name, value in {**entries(), **changes}.items():
            if value is not None:
                archive.writestr(name, value)
    return content.getvalue()


def refused(content, tmp_path, match=None):
    path = tmp_path / "voice.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=match) as caught:
        read_voice(path)
    assert "voice.pt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_of_both_types():
    plain, half = (torch_file.read(GOLDENS / f"personaplex_{name}.pt") for name in ("float32", "bfloat16"))
    assert plain["embeddings"].shape == half["embeddings"].shape == (6, 1, 1, 24)
    assert half["embeddings"].dtype == np.float32
    np.testing.assert_allclose(half["embeddings"], plain["embeddings"], rtol=2**-8)
    assert plain["cache"].dtype == np.int64
    np.testing.assert_array_equal(half["cache"], plain["cache"])
    assert "torch" not in sys.modules


class Runs:
    """What a pickle does when it is loaded."""

    def __init__(self, call, *arguments):
        self.how = (call, arguments)

    def __reduce__(self):
        return self.how


HOSTILE = {
    "os.system": lambda p: pickle.dumps(Runs(os.system, f"touch {p}"), 2),
    "builtins.exec": lambda p: pickle.dumps(Runs(builtins.exec, f"open({str(p)!r}, 'w')"), 2),
    "builtins.eval": lambda p: pickle.dumps({"embeddings": Runs(builtins.eval, f"open({str(p)!r}, 'w')")}, 4),
    "builtins.getattr": lambda p: pickle.dumps(Runs(getattr, "x", "upper"), 5),
    "builtins.open": lambda p: b"cbuiltins\nopen\n(V" + str(p).encode() + b"\nVw\ntR.",
    "posix.system": lambda p: b"\x80\x02cposix\nsystem\nX\x05\x00\x00\x00touch\x85R.",
    "torch._utils.something_else": lambda p: b"\x80\x02ctorch._utils\nsomething_else\n.",
    "torch.load": lambda p: b"\x80\x02ctorch\nload\n.",
    "numpy.core.multiarray": lambda p: pickle.dumps(np.zeros(3), 2),
    "collections.OrderedDict with arguments": lambda p: b"\x80\x02ccollections\nOrderedDict\n(K\x01tR.",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_is_called(what, tmp_path):
    mark = tmp_path / "ran"
    program = HOSTILE[what](mark)
    refused(zipped({pickle_name(): program}), tmp_path)
    assert not mark.exists()


def test_a_hostile_file_is_refused_by_what_it_asks_for(tmp_path):
    program = pickle.dumps(Runs(os.system, "true"), 2)
    refused(zipped({pickle_name(): program}), tmp_path, "(posix|nt).system, which is refused")
    program = pickle.dumps(Runs(os.system, "true"), 4)  # the name is on the stack
    refused(zipped({pickle_name(): program}), tmp_path, "system, which is refused")


OPERATIONS = {
    "BUILD": b"\x80\x02}}b.", "INST": b"(ios\nsystem\n.", "OBJ": b"(cos\nsystem\no.", "NEWOBJ": b"\x80\x02)\x81.",
    "EXT1": b"\x80\x02\x82\x01.", "PERSID": b"Phello\n.",
    "BYTEARRAY8": b"\x80\x05\x96" + struct.pack("<Q", 3) + b"abc.",
    "NEXT_BUFFER": b"\x80\x05\x97.", "DUP": b"\x80\x022.", "LONG4": b"\x80\x02\x8b\x01\x00\x00\x00\x05.",
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_that_tensors_do_not_need(name, tmp_path):
    refused(zipped({pickle_name(): OPERATIONS[name]}), tmp_path, f"operation {name}|which is refused")


def changed(old, new):
    program = entries()[pickle_name()]
    assert program.count(old) == 1
    return program.replace(old, new)


SHAPE = b"K\x06K\x01K\x01K\x18"  # of the embeddings


def shaped(first):
    """The file with embeddings of another first axis."""
    return zipped({pickle_name(): changed(SHAPE, first + SHAPE[2:])})


def flat_cache():
    program = changed(b"K\x01K\x11K\x04\x87", b"K\x44\x85").replace(b"K\x44K\x04K\x01\x87", b"K\x01\x85")
    return zipped({pickle_name(): program})


BROKEN = {
    "no zip": lambda: b"hello",
    "empty": lambda: b"",
    "a pickle of old": lambda: pickle.dumps({"embeddings": 1}, 2),
    "cut off": lambda: GOOD.read_bytes()[:-40],
    "no pickle": lambda: zipped({pickle_name(): None}),
    "two pickles": lambda: zipped({"other/data.pkl": b"."}),
    "an empty pickle": lambda: zipped({pickle_name(): b""}),
    "half a pickle": lambda: zipped({pickle_name(): entries()[pickle_name()][:100]}),
    "a large pickle": lambda: zipped({pickle_name(): b"\x80\x02" + b"N" * (1 << 21)}, zipfile.ZIP_DEFLATED),
    "a list": lambda: zipped({pickle_name(): b"\x80\x02]."}),
    "numbers as keys": lambda: zipped({pickle_name(): b"\x80\x02}K\x01K\x01s."}),
    "a memo far away": lambda: zipped({pickle_name(): b"\x80\x02}r\xff\xff\xff\x7f."}),
    "no storage": lambda: zipped({name: None for name in entries() if name.endswith("data/0")}),
    "a short storage": lambda: zipped({name: b"\x00" * 10 for name in entries() if name.endswith("data/1")}),
    "big-endian": lambda: zipped({name: b"big" for name in entries() if name.endswith("byteorder")}),
    "beyond its storage": lambda: shaped(b"K\x07"),
    "a stride beyond": lambda: zipped({pickle_name(): changed(b"K\x18K\x18K\x18K\x01", b"K\xf8K\x18K\x18K\x01")}),
    "repeated endlessly": lambda: shaped(b"J\xff\xff\xff\x7f"),
    "a negative size": lambda: shaped(b"J\xff\xff\xff\xff"),
    "an unknown storage": lambda: zipped({pickle_name(): changed(b"BFloat16Storage", b"QInt8Storage")}),
    "no embeddings": lambda: zipped({pickle_name(): changed(b"embeddings", b"embeddingz")}),
    "no cache": lambda: zipped({pickle_name(): changed(b"cache", b"cacha")}),
    "a flat cache": flat_cache,
    "NaN": lambda: zipped({name: b"\xff\xff" * 144 for name in entries() if name.endswith("data/0")}),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_broken_is_said_in_a_line(how, tmp_path):
    refused(BROKEN[how](), tmp_path)


def test_a_file_that_unpacks_to_more_than_any_voice_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "MAX_BYTES", 1 << 20)
    bomb = zipped({"voice/data/9": b"\x00" * (2 << 20)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 10_000
    refused(bomb, tmp_path, "unpacks to more than 1 MB")


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(CheckpointError, match=str(path)):
            read_voice(path)
