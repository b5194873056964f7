"""What a file's own structure says of its wholeness, where a decoder would shorten a damaged file without a word.

Ogg's pages are numbered, carry checksums and end with a marked one (RFC 3533); MPEG audio is a chain of frames whose
headers give their lengths, often preceded by their number (ISO/IEC 11172-3; Xing's and Fraunhofer's tags); the frames
of FLAC carry checksums (RFC 9639); an MP4 file is a chain of boxes (ISO/IEC 14496-12). None of this decodes anything.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Fault", "container_of", "fault_of_isobmff", "fault_of_ogg", "flac_with_length", "mpeg_with_length"]


class Fault(NamedTuple):
    """What is wrong with a file: a word for tables, and words for people."""

    reason: str
    words: str


def container_of(data: bytes) -> str | None:
    """``wav``, ``flac``, ``ogg``, ``mpeg`` or ``isobmff`` by the first bytes; None where they are none of these."""
    if data[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return "wav"
    if data[4:8] == b"ftyp":
        return "isobmff"
    start = _after_id3(data, 0)
    if data[start : start + 4] == b"fLaC":
        return "flac"
    if data[:4] == b"OggS":
        return "ogg"
    return "mpeg" if start or _mpeg_frame(data, 0) is not None else None


def fault_of_ogg(data: bytes, most_s: float) -> Fault | None:
    """Why an Ogg file is not one whole stream, or None.

    A file without a page that is marked as the last counts as cut off: nothing tells it from one that is.

    Args:
        data: the file's bytes.
        most_s: the longest recording that is wanted, in seconds: nobody's file is to keep this busy for long.
    """
    position = count = 0
    pages: dict[int, int] = {}  # the number of each stream's next page
    open_streams: set[int] = set()
    while position < len(data):
        count += 1
        if count > 500 * most_s + 1000:  # a packet of Opus lasts 2.5 ms or longer
            return Fault("too_long", "has more pages than a recording of the longest duration needs")
        start = data[position : position + 4]
        if start != b"OggS"[: len(start)]:
            if open_streams:
                return Fault("truncated", f"damaged Ogg: no page begins at byte {position}")
            return None  # something that is no audio follows
        head = position + 27
        body = head + data[head - 1] if head <= len(data) else len(data) + 1
        end = body + sum(data[head:body])
        if end > len(data):
            return Fault("truncated", "truncated Ogg: its last page is not whole")
        flags, serial, number, checksum = struct.unpack_from("<5xB8xIII", data, position)
        if _ogg_checksum(data[position : position + 22] + bytes(4) + data[position + 26 : end]) != checksum:
            return Fault("truncated", f"damaged Ogg: the page at byte {position} does not have its checksum")
        if flags & 2:
            if pages and not open_streams:
                return Fault("chained", "holds several recordings, one after the other (a chained Ogg); split it")
            open_streams.add(serial)
        if number != pages.get(serial, number):
            return Fault("truncated", f"damaged Ogg: page {pages[serial]} is missing before byte {position}")
        pages[serial] = number + 1
        if flags & 4:
            open_streams.discard(serial)
        position = end
    return Fault("truncated", "truncated Ogg: it has no last page") if open_streams else None


def mpeg_with_length(data: bytes, most_s: float) -> bytes | Fault:
    """The frames of a file of MPEG audio (MP3), without tags around them, and the right number in front of them.

    Without it, or with a wrong one, as where files were strung together, a decoder guesses how much there is and leaves
    the rest. A file that was cut between two frames and does not say how many it had cannot be told from a whole one.

    Args:
        data: the file's bytes.
        most_s: the longest recording that is wanted, in seconds.
    """
    start = position = end = _next_mpeg_frame(data, _after_id3(data, 0))
    count, first, claimed = 0, b"", None
    while position < len(data):
        length = _mpeg_frame(data, position)
        if length is None:
            after = _after_tag(data, position)
            if after != position:
                position = after
                continue
            if data[position] == 0xFF and len(data) - position < 4:
                return _CUT_MPEG
            if _next_mpeg_frame(data, position) == len(data) or not data[position:].strip(b"\0"):
                break
            return Fault("truncated", f"damaged MP3: no frame begins at byte {position}")
        if not length:
            return data[start:]  # "free format": headers do not give lengths
        if position + length > len(data):
            return _CUT_MPEG
        if not count:
            first = data[position : position + length]
            claimed = _mpeg_claim(first)
        count += 1
        position = end = position + length
        if count > 125 * most_s + 100:  # of 8 ms or longer
            return Fault("too_long", f"longer than the limit of {most_s:g} s")
    if not count:
        return Fault("truncated", "damaged MP3: it holds no frames")
    if claimed is None:
        return _mpeg_count(first, count) + data[start:end]
    count -= 1
    promised, size = claimed
    # Some encoders count the frame that holds the number; then the size tells.
    if count < promised - 1 or (count < promised and end - start < size):
        return Fault("truncated", f"truncated MP3: {count} of {promised} frames are there")
    if count > promised:
        return _mpeg_count(first, count) + data[start + len(first) : end]
    return data[start:end]


def fault_of_isobmff(data: bytes) -> Fault | None:
    """Why an MP4 file (M4A) is not whole, or None."""
    position, kinds = 0, set()
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size == 0 and len(data) - position >= 8:  # up to the end
            size = len(data) - position
        if size < 8 or position + size > len(data):
            return Fault("truncated", f"truncated or damaged MP4: the box at byte {position} is not whole")
        kinds.add(data[position + 4 : position + 8])
        position += size
    missing = {b"moov", b"mdat"} - kinds
    return Fault("truncated", "truncated MP4: it lacks its samples or their description") if missing else None


def flac_with_length(data: bytes) -> bytes | Fault:
    """A FLAC file, without tags in front, whose header gives its length.

    Encoders that write to a pipe leave it open. It is the last frame's place and its own length; a last frame whose
    checksum does not hold was cut. A cut between two frames of a file that left its length open goes unnoticed.
    """
    start = _after_id3(data, 0)
    # Marker, the block's header, then STREAMINFO: block and frame sizes, and 36 bits of length from its byte 13 on.
    info = start + 8
    if len(data) < info + 34 or data[start + 4] & 0x7F:
        return data[start:]  # the decoder has words for it
    if data[info + 13] & 0x0F or any(data[info + 14 : info + 18]):
        return data[start:]
    end = len(data) - 128 if data[-128:-125] == b"TAG" else len(data)
    block = int.from_bytes(data[info : info + 2], "big")
    position, tries = end, 4
    while tries and (position := data.rfind(b"\xff", max(info + 34, end - _NOT_FAR), position)) >= 0:
        samples = _flac_frame_end(data, position, block)
        if samples is None:
            continue
        if _crc(data[position:end], _CRC_16, 16) == 0:
            packed = bytes([data[info + 13] & 0xF0 | samples >> 32 & 0x0F]) + (samples & 0xFFFFFFFF).to_bytes(4, "big")
            return data[start : info + 13] + packed + data[info + 18 : end]
        tries -= 1
    return Fault("truncated", "truncated FLAC: its last frame is not whole")


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 with the polynomial 0x04C11DB7, nothing reflected or inverted: zlib's of the mirrored bits."""
    return int(f"{zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF:032b}"[::-1], 2)


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

# Kilobits a second by the header's four bits, from 1 on; by version 1 or not, and layer.
_KBPS = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _mpeg_frame(data: bytes, position: int) -> int | None:
    """The length of the frame that begins here, header included; 0 where it does not say; None where none begins."""
    if len(data) - position < 4 or data[position] != 0xFF or data[position + 1] & 0xE0 != 0xE0:
        return None
    version, layer = data[position + 1] >> 3 & 3, 4 - (data[position + 1] >> 1 & 3)
    kbps, rate, padding = data[position + 2] >> 4, data[position + 2] >> 2 & 3, data[position + 2] >> 1 & 1
    if version == 1 or layer == 4 or kbps == 15 or rate == 3:
        return None
    if kbps == 0:
        return 0
    bits = _KBPS[version == 3, layer][kbps - 1] * 1000
    hertz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    if layer == 1:
        return (12 * bits // hertz + padding) * 4
    return (72 if layer == 3 and version != 3 else 144) * bits // hertz + padding


# How far to look for the next frame's marker, in bytes.
_NOT_FAR = 1 << 18


def _next_mpeg_frame(data: bytes, position: int) -> int:
    """Where, not far off, the next frame begins that another one or the end follows; the end where there is none."""
    last = position + _NOT_FAR
    while (position := data.find(b"\xff", position, last)) >= 0:
        length = _mpeg_frame(data, position)
        if length is not None:
            end = position + length
            if not length or end >= len(data) or _mpeg_frame(data, end) is not None or _after_tag(data, end) != end:
                return position
        position += 1
    return len(data)


_CUT_MPEG = Fault("truncated", "truncated MP3: its last frame is not whole")


def _mpeg_count(frame: bytes, count: int) -> bytes:
    """A frame without sound, of the same kind as ``frame``, that says how many follow, as Xing's encoder did."""
    if frame[1] >> 1 & 3 != 1:
        return b""  # known to layer III only
    header = bytes([0xFF, frame[1] | 1, frame[2] & 0x0C | 9 << 4, frame[3]])
    tag = bytes(_mpeg_tag_place(header) - 4) + b"Xing" + struct.pack(">II", 1, count)
    return (header + tag).ljust(_mpeg_frame(header, 0) or 0, b"\0")


def _mpeg_tag_place(frame: bytes) -> int:
    version_1, mono = frame[1] >> 3 & 3 == 3, frame[3] >> 6 == 3
    return 4 + ((17 if mono else 32) if version_1 else (9 if mono else 17))


def _mpeg_claim(frame: bytes) -> tuple[int, int] | None:
    """How many frames follow, and how many bytes all take, where a first frame says so."""
    place = _mpeg_tag_place(frame)
    if frame[place : place + 4] in (b"Xing", b"Info") and len(frame) >= place + 16:
        flags, frames, size = struct.unpack_from(">III", frame, place + 4)
        return (frames, size if flags & 2 else 0) if flags & 1 and frames else None
    if frame[36:40] == b"VBRI" and len(frame) >= 54:
        size, frames = struct.unpack_from(">II", frame, 46)
        return (frames, size) if frames else None
    return None


def _after_id3(data: bytes, position: int) -> int:
    """The end of the ID3v2 tags that begin here."""
    while data[position : position + 3] == b"ID3" and len(data) - position >= 10:
        size = 0
        for byte in data[position + 6 : position + 10]:
            size = size << 7 | byte & 0x7F
        position += 10 + size + (10 if data[position + 5] & 0x10 else 0)
    return min(position, len(data))


def _after_tag(data: bytes, position: int) -> int:
    """The end of the tag that begins here, or here."""
    if data[position : position + 3] == b"ID3":
        return _after_id3(data, position)
    if data[position : position + 3] == b"TAG":
        return min(position + 128, len(data))
    if data[position : position + 8] == b"APETAGEX" and len(data) - position >= 16:
        return min(position + 32 + int.from_bytes(data[position + 12 : position + 16], "little"), len(data))
    return len(data) if data[position : position + 11] == b"LYRICSBEGIN" else position


def _flac_frame_end(data: bytes, position: int, block: int) -> int | None:
    """How many samples the stream has at the end of the frame that begins here; None where none begins."""
    head = data[position : position + 16]
    if len(head) < 6 or head[1] & 0xFE != 0xF8 or head[3] & 1:
        return None
    size, rate = head[2] >> 4, head[2] & 15
    length = 1 if head[4] < 0x80 else 8 - (head[4] ^ 0xFF).bit_length()
    number = head[4] & (0x7F if length == 1 else 0xFF >> (length + 1))
    for byte in head[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    end = 4 + length
    if size in (6, 7):
        samples = int.from_bytes(head[end : end + size - 5], "big") + 1
        end += size - 5
    else:
        samples = 192 if size == 1 else 576 << (size - 2) if size < 6 else 256 << (size - 8)
    end += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if size == 0 or rate == 15 or end >= len(head) or _crc(head[:end], _CRC_8, 8) != head[end]:
        return None
    return (number if head[1] & 1 else number * block) + samples


def _crc(data: bytes, table: tuple[int, ...], width: int) -> int:
    value, mask = 0, (1 << width) - 1
    for byte in data:
        value = (value << 8 & mask) ^ table[(value >> (width - 8)) ^ byte]
    return value


def _crc_table(polynomial: int, width: int) -> Iterator[int]:
    for byte in range(256):
        value = byte << (width - 8)
        for _ in range(8):
            value = (value << 1) ^ (polynomial if value >> (width - 1) else 0)
            value &= (1 << width) - 1
        yield value


_CRC_8 = tuple(_crc_table(0x07, 8))
_CRC_16 = tuple(_crc_table(0x8005, 16))
