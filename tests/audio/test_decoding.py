"""Sound as people have it: what libsndfile does not read, FFmpeg does; long files as streams; broken ones by name."""

import io
import os
import sys

import numpy as np
import pytest
import soundfile
from stand_ins import RATE, SIZE, loudest_hertz, tone

from moshi_mlx.audio import decoding, files
from moshi_mlx.errors import AudioError


@pytest.fixture
def av():
    return pytest.importorskip("av") if os.environ.get("CI") != "true" else __import__("av")


def encode(av, path, codec, rate=48_000, channels=2, video=False):
    """A second of the tone, as FFmpeg writes it."""
    layout = "stereo" if channels == 2 else "mono"
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=10) if video else None
        stream = container.add_stream(codec, rate=rate, layout=layout)
        sound = np.repeat(tone(rate=rate)[None], channels, axis=0)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
        frame.sample_rate = rate
        packets = [*stream.encode(frame), *stream.encode(None)]
        if pictures:
            pictures.width, pictures.height, pictures.pix_fmt = 16, 16, "yuv420p"
            packets += [*pictures.encode(av.VideoFrame(16, 16, "yuv420p")), *pictures.encode(None)]
        container.start_encoding()
        for packet in packets:
            container.mux(packet)


@pytest.mark.parametrize(
    ("name", "codec", "rate", "channels"),
    [("a.m4a", "aac", 44_100, 2), ("a.m4a", "aac", 48_000, 1), ("a.aac", "aac", 48_000, 2), ("a.mp4", "aac", 48_000, 2),
     ("a.webm", "libopus", 48_000, 2), ("a.opus", "libopus", 48_000, 1), ("a.mka", "pcm_s16le", 16_000, 2),
     ("a.m4a", "alac", 44_100, 2)],
)  # fmt: skip
def test_formats_of_phones_and_browsers(av, tmp_path, name, codec, rate, channels):
    try:
        encode(av, tmp_path / name, codec, rate, channels, video=name.endswith("mp4"))
    except av.FFmpegError as error:
        pytest.skip(f"this FFmpeg cannot write it: {error}")
    samples = files.read_sound(tmp_path / name, RATE)
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(RATE, abs=RATE // 10)
    middle = samples[RATE // 4 : -RATE // 4]
    assert loudest_hertz(middle) == pytest.approx(440, abs=4)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), abs=0.02)


def test_without_the_decoder_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x1cftypM4A " + bytes(100))
    with pytest.raises(AudioError, match=r"a\.m4a: .*m4a, mp4, webm and others: pip install av$"):
        files.read_sound(tmp_path / "a.m4a", RATE)


def test_a_film_without_sound_is_named(av, tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for packet in [*stream.encode(av.VideoFrame(16, 16, "yuv420p")), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(AudioError, match=r"a\.mp4: .*there is no sound in it"):
        files.read_sound(tmp_path / "a.mp4", RATE)


@pytest.mark.parametrize("suffix", ["m4a", "flac", "mp3", "ogg", "wav"])
@pytest.mark.parametrize("how", ["cut", "scrambled", "zeros"])
def test_damaged_files_are_read_as_far_as_they_go_or_named(av, tmp_path, suffix, how):
    path = tmp_path / f"a.{suffix}"
    if suffix == "m4a":
        encode(av, path, "aac")
    else:
        soundfile.write(path, tone(), RATE)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if how == "cut":
        del data[middle:]
    elif how == "scrambled":
        data[middle : middle + 500] = np.random.default_rng(0).bytes(500)
    else:
        data[100:] = bytes(len(data) - 100)
    path.write_bytes(data)
    read, said = [], f"a.{suffix}: "
    try:
        read = files.read_sound(path, RATE)
    except AudioError as error:
        said = str(error)
    assert len(read) <= 1.2 * RATE
    assert f"a.{suffix}: " in said
    assert "\n" not in said


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff\xfe", "\u6771\u4eac".encode(), b"new\nline", b" "])
@pytest.mark.parametrize("suffix", [b".flac", b".wav"])
def test_names_in_any_encoding(tmp_path, name, suffix):
    path = os.fsencode(tmp_path) + b"/" + name + suffix
    try:
        with open(path, "wb") as file:
            soundfile.write(file, tone(), RATE, format=suffix[1:].decode())
    except OSError:
        pytest.skip("this file system takes no such name")
    assert len(files.read_sound(os.fsdecode(path), RATE)) == RATE
    sink = files.FileSink(os.fsdecode(path)[: -len(suffix)] + ".out.wav", RATE)
    sink.write(tone())
    sink.close()
    assert len(files.read_sound(sink.path, RATE)) == RATE


@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100, 48_000])
def test_blocks_are_the_whole_file(tmp_path, monkeypatch, rate):
    soundfile.write(tmp_path / "a.wav", tone(3.0, rate), rate, subtype="FLOAT")
    whole = files.read_sound(tmp_path / "a.wav", RATE)
    monkeypatch.setattr(decoding, "BLOCK", 1000)
    expected, blocks = decoding.blocks_at(tmp_path / "a.wav", RATE)
    pieces = list(blocks)
    assert len(pieces) > 10
    assert expected == len(whole) == 3 * RATE
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5)


def test_a_long_file_is_not_decoded_before_it_is_heard():
    decoded = []

    def blocks():
        for n in range(1000):
            decoded.append(n)
            yield np.full(SIZE, n, np.float32)

    source = files.FileSource(blocks(), SIZE, tail=SIZE, expected=1000 * SIZE)
    assert len(decoded) <= 3
    assert (source.length, source.expected) == (None, 1001 * SIZE)
    assert [source.read()[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(decoded) <= 8


@pytest.mark.parametrize("size", [1, SIZE, SIZE + 1, 5 * SIZE - 1, 5 * SIZE])
@pytest.mark.parametrize("tail", [0, 1, SIZE])
def test_length_is_known_with_the_last_frame_however_sound_comes(size, tail):
    sound = np.arange(size, dtype=np.float32)
    for block in (1, 700, SIZE, 10 * SIZE):
        source = files.FileSource((sound[n : n + block] for n in range(0, size, block)), SIZE, tail)
        frames = []
        while (frame := source.read()) is not None:
            frames.append(frame)
        assert source.length == size + tail
        assert len(frames) == -(-(size + tail) // SIZE)
        np.testing.assert_array_equal(np.concatenate(frames)[:size], sound)


def test_standard_input(monkeypatch):
    held = io.BytesIO()
    soundfile.write(held, tone(), RATE, format="FLAC")

    class Input:
        buffer = io.BytesIO(held.getvalue())

        def isatty(self):
            return False

    monkeypatch.setattr(sys, "stdin", Input())
    assert len(files.read_sound("-", RATE)) == RATE
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(AudioError, match="standard input: expected a sound file"):
        files.read_sound("-", RATE)
