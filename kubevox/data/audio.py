"""Bytes to canonical waveform and back: the one decoder that ingest, serving and every test call.

The canonical waveform is mono (the mean of the channels), quantised to 24-bit PCM, at the source's own rate. 24-bit
integers are exact in float32, and FLAC keeps them exactly, so what is stored, what is trained on and what is served
are the same numbers. Of a source's 32-bit PCM or floats what is finer than 24 bits is rounded away; its tags, pictures
and other metadata go no further than the decoder.
"""

from __future__ import annotations

import hashlib
import io
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soundfile

from kubevox.config import AudioLimits
from kubevox.data import containers, ffmpeg
from kubevox.errors import AudioError

__all__ = ["SourceInfo", "Waveform", "canonical", "decode", "decode_stored", "encode_flac"]

_FULL_SCALE = 1 << 23
_BLOCK_FRAMES = 1 << 16
# Encodings whose samples are whole numbers of at most 24 bits: nothing is rounded, so nothing need be.
_EXACT = frozenset({"PCM_S8", "PCM_U8", "PCM_16", "PCM_24"})


@dataclass(frozen=True)
class SourceInfo:
    """What a recording was before it became canonical."""

    format: str
    subtype: str
    channels: int
    sample_rate: int
    size_bytes: int


@dataclass(frozen=True, eq=False)
class Waveform:
    """A canonical waveform.

    Attributes:
        pcm: int32 [samples], values of 24-bit PCM, -2^23 .. 2^23 - 1.
        sample_rate: samples a second.
    """

    pcm: npt.NDArray[np.int32]
    sample_rate: int

    @property
    def samples(self) -> npt.NDArray[np.float32]:
        """float32 [samples] in [-1, 1), exactly the PCM over 2^23."""
        return _floats(self.pcm)

    def stretch(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """float32 [stop - start]: :attr:`samples` from ``start`` to ``stop``, and no more of them than that."""
        return _floats(self.pcm[start:stop])

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.pcm) / self.sample_rate

    @cached_property
    def id(self) -> str:
        """The utterance's id: SHA-256, in hex, of the rate and the PCM (little-endian int32)."""
        digest = hashlib.sha256(f"kubevox-pcm24:{self.sample_rate}:".encode())
        digest.update(np.ascontiguousarray(self.pcm, dtype="<i4").tobytes())
        return digest.hexdigest()


def canonical(samples: npt.NDArray[np.float64], sample_rate: int) -> Waveform:
    """Mean of the channels, rounded to 24-bit PCM (half to even), clipped to its range.

    Args:
        samples: float [frames] or [frames, channels], full scale 1.0.
        sample_rate: samples a second.

    Raises:
        AudioError: a sample is not a finite number.
    """
    mono = samples if samples.ndim == 1 else samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if not np.isfinite(mono).all():
        raise AudioError("not_finite", "holds samples that are not finite numbers")
    # Clipped twice: what is too large to be scaled, and then one, which is one step too much.
    pcm = np.minimum(np.rint(np.clip(mono, -1.0, 1.0) * _FULL_SCALE), _FULL_SCALE - 1).astype(np.int32)
    return Waveform(pcm, int(sample_rate))


def decode(data: bytes, limits: AudioLimits, name: str = "audio") -> tuple[Waveform, SourceInfo]:
    """Decode one recording into its canonical waveform.

    WAV (8, 16, 24 or 32 bits, float, and what else libsndfile knows in it; also extensible and RF64), FLAC, Ogg Vorbis
    and Opus, MP3; M4A where the program ``ffmpeg`` is installed.

    The limits hold while decoding, not after: a small file that unfolds into hours is refused at the limit. There is no
    lower bound on the duration here beyond one sample; :class:`~kubevox.config.ValidateConfig` and serving have theirs.
    A file that was cut off is refused, also where decoders would shorten it without a word; an MP3 or a streamed FLAC
    that does not say how many frames it had, and was cut exactly between two, cannot be told from a whole one.

    Args:
        data: the file's bytes.
        limits: the most that is accepted.
        name: what to call the recording in errors.

    Raises:
        AudioError: the bytes are no complete, acceptable recording; ``reason`` is one of ``empty``, ``too_large``,
            ``not_audio``, ``channels``, ``sample_rate``, ``too_long``, ``truncated``, ``chained``, ``not_finite``,
            ``no_decoder``.
    """
    if not data:
        raise AudioError("empty", f"{name}: the file is empty")
    if len(data) > limits.max_bytes:
        raise AudioError("too_large", f"{name}: {len(data)} bytes, more than the limit of {limits.max_bytes}")
    return _decode(data, limits, name)


def _decode(data: bytes, limits: AudioLimits, name: str) -> tuple[Waveform, SourceInfo]:
    container = containers.container_of(data)
    if container is None:
        raise AudioError("not_audio", f"{name}: not a recording: no WAV, FLAC, Ogg, MP3 or M4A file begins so")
    if container == "isobmff":
        return _decode_isobmff(data, limits, name)
    plain = _plain_wav(data, name)
    if plain is not None:
        info, pcm = plain
        _check_header(info, limits, name)
        if len(pcm) > int(limits.max_duration_s * info.sample_rate):
            raise _too_long(limits, name)
        samples = _mono(pcm)
    else:
        info, samples = _through_libsndfile(_whole(data, container, limits, name), len(data), limits, name)
    if not len(samples):
        raise AudioError("empty", f"{name}: holds no samples")
    if samples.dtype == np.int32:
        return Waveform(np.asarray(samples, np.int32), info.sample_rate), info
    try:
        return canonical(samples, info.sample_rate), info
    except AudioError as error:
        raise AudioError(error.reason, f"{name}: {error}") from None


def decode_stored(flac: bytes, name: str = "audio") -> Waveform:
    """Decode what :func:`encode_flac` wrote: mono, exact, and within limits already.

    Raises:
        AudioError: ``damaged``.
    """
    try:
        samples, rate = soundfile.read(io.BytesIO(flac), dtype="int32")
    except soundfile.LibsndfileError as error:
        raise AudioError("damaged", f"{name}: its stored audio is damaged ({error.error_string})") from None
    return Waveform(samples >> 8, int(rate))


def encode_flac(waveform: Waveform) -> bytes:
    """FLAC of the canonical waveform, without tags: 16-bit where that is exact, else 24-bit."""
    subtype = "PCM_16" if not (waveform.pcm & 0xFF).any() else "PCM_24"
    buffer = io.BytesIO()
    # soundfile takes int32 at full scale: 24-bit values sit in the upper three bytes.
    soundfile.write(buffer, waveform.pcm << 8, waveform.sample_rate, format="FLAC", subtype=subtype)
    return buffer.getvalue()


def _whole(data: bytes, container: str, limits: AudioLimits, name: str) -> bytes:
    """What libsndfile is to read, where the container's own structure says that it is all there."""
    if container == "ogg":
        found = containers.fault_of_ogg(data, limits.max_duration_s) or data
    elif container == "mpeg":
        found = containers.mpeg_with_length(data, limits.max_duration_s)
    else:
        found = containers.flac_with_length(data) if container == "flac" else data
    if isinstance(found, containers.Fault):
        raise AudioError(found.reason, f"{name}: {found.words}")
    return found


def _through_libsndfile(data: bytes, size: int, limits: AudioLimits, name: str) -> tuple[SourceInfo, npt.NDArray[Any]]:
    """What the recording was, of ``size`` bytes as it came, and its mono samples."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            info = SourceInfo(file.format, file.subtype, file.channels, file.samplerate, size)
            _check_header(info, limits, name)
            samples = _read(file, limits, name)
            promised = file.frames
    except soundfile.LibsndfileError as error:
        raise AudioError("truncated", f"{name}: damaged or incomplete ({_reason(error)})") from None
    if info.format not in ("OGG", "MP3") and len(samples) < promised < 1 << 62:
        raise AudioError("truncated", f"{name}: truncated: {len(samples)} of {promised} samples could be read")
    return info, samples


def _decode_isobmff(data: bytes, limits: AudioLimits, name: str) -> tuple[Waveform, SourceInfo]:
    """M4A: ffmpeg makes a WAV of it, to which the same limits apply."""
    fault = containers.fault_of_isobmff(data)
    if fault:
        raise AudioError(fault.reason, f"{name}: {fault.words}")
    # A little more than is wanted, so that a recording that is too long is seen to be.
    most_s = limits.max_duration_s + 0.5
    most_bytes = int(most_s * limits.max_sample_rate) * limits.max_channels * 4 + 4_096
    waveform, info = _decode(ffmpeg.decode_isobmff(data, name, most_s, most_bytes), limits, name)
    entry = data.find(b"stsd")
    codec = _CODECS.get(data[entry + 16 : entry + 20], "OTHER")
    return waveform, SourceInfo("M4A", codec, info.channels, info.sample_rate, len(data))


_CODECS = {b"mp4a": "AAC", b"alac": "ALAC", b"fLaC": "FLAC", b"Opus": "OPUS"}


def _check_header(info: SourceInfo, limits: AudioLimits, name: str) -> None:
    if info.channels > limits.max_channels:
        raise AudioError("channels", f"{name}: {info.channels} channels, more than the limit of {limits.max_channels}")
    if not limits.min_sample_rate <= info.sample_rate <= limits.max_sample_rate:
        raise AudioError(
            "sample_rate",
            f"{name}: sample rate {info.sample_rate} Hz is outside {limits.min_sample_rate} "
            f"to {limits.max_sample_rate} Hz",
        )
    if info.sample_rate > 65_535 and info.sample_rate % 10:
        raise AudioError(
            "sample_rate",
            f"{name}: sample rate {info.sample_rate} Hz cannot be stored: FLAC takes only multiples of 10 above 65535",
        )


def _read(file: soundfile.SoundFile, limits: AudioLimits, name: str) -> npt.NDArray[Any]:
    """Mono samples: int32 [frames], 24-bit PCM, where the source's own samples are that; else float64 [frames]."""
    most = int(limits.max_duration_s * file.samplerate)
    exact = file.channels == 1 and file.subtype in _EXACT
    blocks: list[npt.NDArray[Any]] = []
    total = 0
    while True:
        block = file.read(_BLOCK_FRAMES, dtype="int32" if exact else "float64", always_2d=True)
        if not len(block):
            break
        total += len(block)
        if total > most:
            raise _too_long(limits, name)
        # soundfile's int32 has full scale: what has 24 bits or fewer sits in the upper three bytes.
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused when all is read
            blocks.append(block[:, 0] >> 8 if exact else block.mean(axis=1) if block.shape[1] > 1 else block[:, 0])
    return np.concatenate(blocks) if blocks else np.empty(0)


def _mono(samples: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    """24-bit PCM [frames, channels] as :func:`_read` gives it."""
    if samples.shape[1] == 1:
        return samples[:, 0]
    return (samples.astype(np.float64) / _FULL_SCALE).mean(axis=1)


def _too_long(limits: AudioLimits, name: str) -> AudioError:
    return AudioError("too_long", f"{name}: longer than the limit of {limits.max_duration_s:g} s")


def _floats(pcm: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    # A power of two: the product is exact.
    return pcm.astype(np.float32) * np.float32(1.0 / _FULL_SCALE)


def _plain_wav(data: bytes, name: str) -> tuple[SourceInfo, npt.NDArray[np.int32]] | None:
    """A WAV file of 16-bit or 24-bit PCM, read straight from its bytes: int32 [frames, channels], 24-bit PCM.

    Its samples are there as they are; going through libsndfile takes ten times as long. And libsndfile reads a cut-off
    WAV without a word; its chunk sizes tell (RIFF, Microsoft & IBM 1991).

    Returns:
        None where it is anything else, which libsndfile is to read.

    Raises:
        AudioError: ``truncated``.
    """
    if data[:4] not in (b"RIFF", b"RIFX", b"RF64") or data[8:12] != b"WAVE":
        return None
    order: Literal["big", "little"] = "big" if data[:4] == b"RIFX" else "little"
    position, form, long_size = 12, b"", 0
    while position + 8 <= len(data):
        chunk, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], order)
        present = len(data) - position - 8
        if chunk == b"ds64":  # RF64 (EBU Tech 3306): the samples' size in 64 bits
            long_size = int.from_bytes(data[position + 16 : position + 24], "little")
        if chunk == b"fmt ":
            form = data[position + 8 : position + 8 + size]
        if chunk == b"data":
            if size == 0xFFFFFFFF and 0 < long_size < 1 << 63:
                size = long_size
            # Streamed WAVs leave the size open (0 or 2^32 - 1).
            if size > present and not 0xFFFFFF00 <= size <= 0xFFFFFFFF:
                raise AudioError(
                    "truncated",
                    f"{name}: truncated WAV: the header promises {size} bytes of samples, {present} are there",
                )
            return (
                _pcm_of(form, memoryview(data)[position + 8 : position + 8 + size], len(data))
                if size <= present and data[:4] == b"RIFF"
                else None
            )
        position += 8 + size + (size & 1)
    raise AudioError("truncated", f"{name}: truncated WAV: it holds no samples")


def _pcm_of(form: bytes, content: memoryview, size: int) -> tuple[SourceInfo, npt.NDArray[np.int32]] | None:
    if len(form) < 16:
        return None
    tag, channels, rate, _, align, bits = struct.unpack("<HHIIHH", form[:16])
    if tag != 1 or bits not in (16, 24) or not channels or align != channels * bits // 8 or not len(content):
        return None
    content = content[: len(content) // align * align]
    if bits == 16:
        pcm = np.frombuffer(content, "<i2").astype(np.int32) << 8
    else:
        # Three bytes each: put into the upper three of four, so that the sign is where it belongs.
        wide = np.zeros((len(content) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        pcm = wide.view("<i4")[:, 0].astype(np.int32) >> 8
    return SourceInfo("WAV", f"PCM_{bits}", channels, rate, size), pcm.reshape(-1, channels)


def _reason(error: soundfile.LibsndfileError) -> str:
    return str(error.error_string).strip().rstrip(".").lower()
