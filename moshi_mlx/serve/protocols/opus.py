"""Opus in Ogg, as websockets carry it: sound to pages as it comes, pages cut anywhere back to sound.

sphn (Kyutai's, which their clients use) reads. It writes as well, with an effort that cannot be set: several times what
PyAV takes, and with eight people the last one's sound would wait for seven others. Putting packets into pages (RFC
3533, RFC 7845) is a handful of bytes.
"""

from __future__ import annotations

import fractions
import secrets
import struct
import zlib
from typing import Any

import numpy as np

from ...errors import InputError

BIT_RATE = 32_000
PACKET_SECONDS = 0.04
# Of the encoder's effort, 0 to 10. Above 3, and for the application "voip", a frame takes four times as long, which
# speech at this rate does not repay: 0.2 ms on an x86 core is little enough to be done on the event loop.
COMPLEXITY = 3
FIRST, LAST = 2, 4  # what a page's header says of its place in the stream
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Writer:
    """Sound of one person to pages of one stream. Not thread-safe, and not bound to a thread."""

    def __init__(self, rate: int) -> None:
        import av

        self._av, self._rate = av, rate
        self._codec: Any = av.CodecContext.create("libopus", "w")
        self._codec.sample_rate, self._codec.layout, self._codec.format = rate, "mono", "flt"
        self._codec.bit_rate = BIT_RATE
        self._codec.time_base = fractions.Fraction(1, rate)
        milliseconds = round(1000 * PACKET_SECONDS)
        self._codec.options = {
            "application": "audio", "frame_duration": str(milliseconds), "compression_level": str(COMPLEXITY),
        }  # fmt: skip
        self._packet = round(rate * PACKET_SECONDS)
        self._samples = self._page = 0
        self._serial = secrets.randbits(32)

    def write(self, sound: np.ndarray) -> bytes:
        """float32 [T], T whole packets -> pages; the stream's headers stand before the first."""
        pages = b"" if self._page else self._headers()
        for start in range(0, len(sound), self._packet):
            part = np.ascontiguousarray(sound[None, start : start + self._packet], np.float32)
            frame = self._av.AudioFrame.from_ndarray(part, format="flt", layout="mono")
            frame.sample_rate, frame.pts = self._rate, self._samples
            self._samples += self._packet
            for packet in self._codec.encode(frame):
                # In 48 kHz, whatever the rate is.
                pages += self._page_of(bytes(packet), self._samples * 48_000 // self._rate)
        return pages

    def _headers(self) -> bytes:
        if not self._codec.is_open:
            self._codec.open()
        vendor = b"moshi_mlx"
        tags = b"OpusTags" + struct.pack("<I", len(vendor)) + vendor + struct.pack("<I", 0)
        return self._page_of(bytes(self._codec.extradata), 0, FIRST) + self._page_of(tags, 0)

    def _page_of(self, packet: bytes, position: int, place: int = 0) -> bytes:
        """A page that holds one whole packet."""
        lacing = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
        page = struct.pack("<4sBBqIIIB", b"OggS", 0, place, position, self._serial, self._page, 0, len(lacing))
        page += lacing + packet
        self._page += 1
        return page[:22] + struct.pack("<I", checksum(page)) + page[26:]


class Reader:
    """Pages of one stream, cut anywhere, to sound. Lost pages and a stream that begins anew do no harm."""

    def __init__(self, rate: int) -> None:
        import sphn

        self._stream = sphn.OpusStreamReader(rate)

    def read(self, data: bytes) -> np.ndarray:
        """-> float32 [T], what is complete by now. Raises InputError for what is no Ogg/Opus: the stream is lost."""
        try:
            return np.asarray(self._stream.append_bytes(data), np.float32)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"audio: got bytes that are no Ogg/Opus stream ({str(error).splitlines()[0]})") from None


def checksum(page: bytes) -> int:
    """Ogg's CRC of a page whose own checksum is 0: zlib's polynomial, without its inversions and its order of bits."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)
