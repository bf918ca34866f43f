"""Opus in Ogg: what is written is read by others, and what is read may come in any cut."""

import io

import numpy as np
import pytest
import soundfile
import sphn

from moshi_mlx import InputError
from moshi_mlx.serve.protocols.opus import Reader, Writer, checksum

TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 24_000)).astype(np.float32)


def written(writer, sound=TONE):
    return [writer.write(sound[i : i + 1920]) for i in range(0, len(sound), 1920)]


def is_tone(sound):
    spectrum = np.abs(np.fft.rfft(sound[6000:30000]))
    return abs(np.argmax(spectrum) - 440) <= 1 and 0.2 < np.abs(sound[6000:30000]).max() < 0.4


def test_every_frame_is_out_at_once():
    reader = Reader(24_000)
    assert [len(reader.read(pages)) for pages in written(Writer(24_000))] == [1920] * 25


def test_libogg_reads_it():
    """Checksums and positions are right, or libsndfile would lose pages."""
    sound, rate = soundfile.read(io.BytesIO(b"".join(written(Writer(24_000)))), dtype="float32")
    assert rate == 24_000
    assert abs(len(sound) - len(TONE)) < 500
    assert is_tone(sound)


@pytest.mark.parametrize("size", [1, 7, 100, 5000])
def test_pages_come_in_any_cut(size):
    stream, reader = b"".join(written(Writer(24_000))), Reader(24_000)
    sound = np.concatenate([reader.read(stream[i : i + size]) for i in range(0, len(stream), size)])
    assert len(sound) == len(TONE)
    assert is_tone(sound)


def test_kyutais_writer_is_read_and_a_stream_may_begin_anew():
    reader, sounds = Reader(24_000), []
    for _ in range(2):
        writer = sphn.OpusStreamWriter(24_000)
        sounds += [reader.read(bytes(writer.append_pcm(TONE[i : i + 1920]))) for i in range(0, len(TONE), 1920)]
    assert sum(map(len, sounds)) >= 2 * len(TONE) - 1920


def test_lost_pages_do_no_harm():
    pages, reader = written(Writer(24_000)), Reader(24_000)
    heard = [len(reader.read(page)) for page in [*pages[:3], *pages[6:]]]
    assert sum(heard[4:]) == 1920 * len(heard[4:])


@pytest.mark.parametrize("garbage", [b"hello world" * 50, bytes(500), b"OggX" + bytes(60)])
def test_garbage_is_named(garbage):
    with pytest.raises(InputError, match=r"^audio: got bytes that are no Ogg/Opus"):
        Reader(24_000).read(garbage)


def test_the_checksum_is_oggs():
    """Of a page that libogg wrote."""
    file = io.BytesIO()
    soundfile.write(file, TONE, 24_000, format="OGG", subtype="VORBIS")
    page = file.getvalue()
    count = page[26]
    page = bytearray(page[: 27 + count + sum(page[27 : 27 + count])])
    expected = int.from_bytes(page[22:26], "little")
    page[22:26] = bytes(4)
    assert checksum(bytes(page)) == expected
