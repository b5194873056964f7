"""The one decoder: what it takes, what it makes of it, what it refuses and how."""

import contextlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import AudioLimits
from kubevox.data import audio
from kubevox.data.audio import Waveform, canonical, decode, decode_stored, encode_flac
from kubevox.errors import AudioError

LIMITS = AudioLimits()
FULL = 1 << 23


def noise(frames: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Noise on the 16-bit grid, which every container but 8-bit holds exactly: float64 [frames, channels]."""
    return np.random.default_rng(seed).integers(-20_000, 20_000, (frames, channels)) / 32_768


def encoded(samples: np.ndarray, rate: int = 16_000, form: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def refusal(data: bytes, limits: AudioLimits = LIMITS) -> AudioError:
    with pytest.raises(AudioError) as caught:
        decode(data, limits, "folder/clip.wav")
    text = str(caught.value)
    assert text.startswith("folder/clip.wav: ")
    assert len(text.splitlines()) == 1
    return caught.value


@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "PCM_24"),
        ("WAV", "PCM_32"),
        ("WAV", "FLOAT"),
        ("WAV", "DOUBLE"),
        ("WAVEX", "PCM_16"),
        ("RF64", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("FLAC", "PCM_24"),
    ],
)
def test_every_exact_container_gives_the_same_waveform(form, subtype):
    samples = noise(1_600)
    waveform, info = decode(encoded(samples, form=form, subtype=subtype), LIMITS)
    assert np.array_equal(waveform.pcm, np.rint(samples[:, 0] * FULL).astype(np.int32))
    assert np.array_equal(waveform.samples, samples[:, 0].astype(np.float32))
    assert (waveform.sample_rate, waveform.duration_s) == (16_000, 0.1)
    assert (info.format, info.subtype, info.channels, info.sample_rate) == (form, subtype, 1, 16_000)


def test_the_id_is_of_the_audio_and_its_rate_alone():
    samples = noise(1_600)
    ids = {decode(encoded(samples, form=f, subtype=s), LIMITS)[0].id for f, s in (("WAV", "FLOAT"), ("FLAC", "PCM_16"))}
    ids |= {decode(encoded(np.repeat(samples, 2, axis=1)), LIMITS)[0].id}  # stereo with equal channels
    assert len(ids) == 1
    assert decode(encoded(samples, rate=16_001), LIMITS)[0].id not in ids
    quieter = samples.copy()
    quieter[0] -= 1 / 32_768
    assert decode(encoded(quieter), LIMITS)[0].id not in ids


def test_8_bit_wav_keeps_its_256_levels():
    waveform, _ = decode(encoded(np.arange(-128, 128) / 128, subtype="PCM_U8"), LIMITS)
    assert np.array_equal(waveform.pcm, np.arange(-128, 128) << 16)


def test_24_bit_audio_is_exact_and_32_bit_is_rounded_to_it():
    deep = np.random.default_rng(1).integers(-FULL, FULL, 500)
    assert np.array_equal(decode(encoded(deep / FULL, subtype="PCM_24"), LIMITS)[0].pcm, deep)
    finer = deep / FULL + 2.0**-26  # an eighth of a step
    assert np.array_equal(decode(encoded(finer, subtype="PCM_32"), LIMITS)[0].pcm, deep)


@pytest.mark.parametrize("form", ["OGG", "MP3"])
def test_lossy_audio_is_heard(form):
    time = np.arange(16_000) / 16_000
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    waveform, info = decode(encoded(tone, form=form), LIMITS)
    spectrum = np.abs(np.fft.rfft(waveform.samples))
    assert info.format == form
    assert abs(np.argmax(spectrum) / waveform.duration_s - 440) < 2


@pytest.mark.parametrize("channels", [2, 3, 6, 8])
@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_channels_are_averaged(channels, form):
    samples = noise(500, channels)
    waveform, info = decode(encoded(samples, form=form), LIMITS)
    assert info.channels == channels
    assert np.array_equal(waveform.pcm, np.rint(samples.mean(axis=1) * FULL))


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000])
def test_the_rate_is_the_sources_own(rate):
    waveform, _ = decode(encoded(noise(rate // 25), rate), LIMITS)
    assert (waveform.sample_rate, waveform.duration_s) == (rate, 0.04)


pcm24 = st.lists(st.integers(-FULL, FULL - 1), min_size=1, max_size=300)
pcm16 = st.lists(st.integers(-(1 << 15), (1 << 15) - 1).map(lambda value: value << 8), min_size=1, max_size=300)


rates = st.integers(LIMITS.min_sample_rate, 65_535) | st.integers(6_554, LIMITS.max_sample_rate // 10).map(
    lambda n: 10 * n
)


@given(pcm24 | pcm16, rates)
def test_stored_flac_gives_back_exactly_the_waveform(pcm, rate):
    waveform = Waveform(np.array(pcm, np.int32), rate)
    flac = encode_flac(waveform)
    again, info = decode(flac, LIMITS)
    assert np.array_equal(again.pcm, waveform.pcm)
    assert (again.sample_rate, again.id) == (rate, waveform.id)
    assert info.subtype == ("PCM_16" if all(value % 256 == 0 for value in pcm) else "PCM_24")
    assert encode_flac(again) == flac


@given(pcm24)
def test_a_canonical_waveform_is_its_own_canonical_waveform(pcm):
    waveform = Waveform(np.array(pcm, np.int32), 16_000)
    again = canonical(waveform.samples.astype(np.float64), 16_000)
    assert np.array_equal(again.pcm, waveform.pcm)


@given(
    st.lists(st.floats(-4, 4), min_size=1, max_size=50),
    st.sampled_from(["FLOAT", "DOUBLE"]),
)
def test_float_audio_is_clipped_to_full_scale(values, subtype):
    precision = np.float32 if subtype == "FLOAT" else np.float64
    samples = np.array(values, precision)
    waveform, _ = decode(encoded(samples, subtype=subtype), LIMITS)
    expected = np.clip(np.rint(samples.astype(np.float64) * FULL), -FULL, FULL - 1)
    assert np.array_equal(waveform.pcm, expected)
    assert np.abs(waveform.samples).max() <= 1.0


def test_a_small_file_that_unfolds_into_an_hour_is_refused_at_the_limit():
    hour = encoded(np.zeros(3_600 * 8_000, np.int16), 8_000, "FLAC")
    assert len(hour) < 1_000_000
    error = refusal(hour)
    assert error.reason == "too_long"
    assert "limit of 60 s" in str(error)


def test_the_longest_allowed_recording_is_taken_and_one_sample_more_is_not():
    limits = AudioLimits(max_duration_s=1.0)
    assert decode(encoded(noise(16_000)), limits)[0].duration_s == 1.0
    assert refusal(encoded(noise(16_001)), limits).reason == "too_long"


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"", "empty", "is empty"),
        (encoded(np.zeros(0)), "empty", "no samples"),
        (b"This is a letter to a friend.\n" * 50, "not_audio", "not a recording"),
        (b"\x00" * 4_000, "not_audio", "not a recording"),
        (b"\x89PNG\r\n\x1a\n" + b"\x01" * 400, "not_audio", "not a recording"),
        (b"RIFF", "truncated", "damaged or incomplete"),
        (b"RIFF\xff\xff\x00\x00WAVE", "truncated", "no samples"),
        (b"RIFF\xff\xff\x00\x00AVI LIST", "truncated", "damaged or incomplete"),
        (b"fLaC" + b"\x00" * 60, "truncated", "last frame is not whole"),
        (b"OggS" + b"\x00" * 60, "truncated", "damaged Ogg"),
        (encoded(np.array([0.1, np.nan]), subtype="FLOAT"), "not_finite", "not finite"),
        (encoded(np.array([0.1, -np.inf]), subtype="DOUBLE"), "not_finite", "not finite"),
        (encoded(noise(100, 9)), "channels", "9 channels, more than the limit of 8"),
        (encoded(noise(100), 4_000), "sample_rate", "4000 Hz is outside 8000 to 96000 Hz"),
        (encoded(noise(100), 192_000), "sample_rate", "192000 Hz"),
        (encoded(noise(100), 65_537), "sample_rate", "65537 Hz cannot be stored"),
    ],
    # Not the bytes: a float WAV holds the time it was written, and workers must agree on the tests' names.
    ids=lambda value: None if not isinstance(value, bytes) else f"{len(value)} bytes",
)
def test_what_is_no_recording_is_refused_with_its_reason(data, reason, words):
    error = refusal(data)
    assert error.reason == reason
    assert words in str(error)


def test_a_file_above_the_size_limit_is_refused_before_it_is_read():
    error = refusal(b"no recording at all", AudioLimits(max_bytes=10))
    assert (error.reason, "19 bytes, more than the limit of 10" in str(error)) == ("too_large", True)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"])
@settings(max_examples=40)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_wav_cut_anywhere_is_refused(subtype, share):
    whole = encoded(noise(2_000), subtype=subtype)
    assert refusal(whole[: max(1, int(share * len(whole)))]).reason in ("truncated", "not_audio")


def test_a_truncated_wav_says_how_much_is_missing():
    error = refusal(encoded(noise(2_000))[:-1_000])
    assert error.reason == "truncated"
    assert "promises 4000 bytes of samples, 3000 are there" in str(error)


@settings(max_examples=40)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_flac_cut_anywhere_is_refused(share):
    whole = encoded(noise(20_000), form="FLAC")
    assert refusal(whole[: max(1, int(share * len(whole)))]).reason in ("truncated", "not_audio", "empty")


def test_chunks_around_the_samples_do_not_matter():
    samples = noise(1_000)
    plain = encoded(samples)
    listing = b"LIST" + struct.pack("<I", 5) + b"INFOx" + b"\x00"  # an odd size is padded
    begin = plain[:12] + listing + plain[12:]
    end = plain + b"id3 " + struct.pack("<I", 4) + b"abcd"
    expected = decode(plain, LIMITS)[0].id
    assert {decode(begin, LIMITS)[0].id, decode(end, LIMITS)[0].id} == {expected}


def test_a_wav_streamed_with_an_open_size_is_taken():
    whole = bytearray(encoded(noise(1_000)))
    expected = decode(bytes(whole), LIMITS)[0].id
    whole[4:8] = whole[40:44] = b"\xff\xff\xff\xff"
    assert decode(bytes(whole), LIMITS)[0].id == expected


def chunked(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WAV of these chunks, those of odd sizes padded."""
    body = b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def form_of(bits: int, channels: int, rate: int, tag: int = 1) -> bytes:
    align = channels * bits // 8
    return struct.pack("<HHIIHH", tag, channels, rate, rate * align, align, bits)


def through_libsndfile(data: bytes, limits: AudioLimits = LIMITS) -> tuple:
    """What becomes of the bytes where libsndfile reads all WAVs, and of its refusals."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "_plain_wav", lambda data, name: None)
        return outcome(data, limits)


def outcome(data: bytes, limits: AudioLimits = LIMITS) -> tuple:
    try:
        waveform, info = decode(data, limits, "clip")
    except AudioError as error:
        return error.reason, str(error)
    assert waveform.pcm.dtype == np.int32
    return waveform.sample_rate, waveform.pcm.tolist(), info


other_chunks = st.lists(
    st.tuples(st.sampled_from([b"LIST", b"bext", b"junk", b"fact"]), st.binary(min_size=4, max_size=9)), max_size=3
)


@settings(max_examples=200)
@given(
    content=st.binary(min_size=1, max_size=200),
    bits=st.sampled_from([16, 24]),
    channels=st.integers(1, 9),
    rate=rates | st.sampled_from([1_000, 200_000, 65_537]),
    longer_form=st.booleans(),
    before=other_chunks,
    after=other_chunks,
    most=st.sampled_from([10, 60 * 8_000]),
)
def test_a_plain_wav_is_read_as_libsndfile_reads_it(
    content: bytes,
    bits: int,
    channels: int,
    rate: int,
    longer_form: bool,
    before: list[tuple[bytes, bytes]],
    after: list[tuple[bytes, bytes]],
    most: int,
) -> None:
    form = form_of(bits, channels, rate) + (b"\0\0" if longer_form else b"")
    # A last frame that is not whole is not one.
    data = chunked(*before, (b"fmt ", form), *before, (b"data", content), *after)
    limits = AudioLimits(min_duration_s=1e-5, max_duration_s=(most + 0.5) / rate)
    assert outcome(data, limits) == through_libsndfile(data, limits)
    whole = len(content) // (channels * bits // 8)
    if 0 < whole <= most and 8_000 <= rate <= 96_000 and rate != 65_537 and channels <= 8:
        assert len(decode(data, limits)[0].pcm) == whole


@given(st.integers(1, 3), st.sampled_from([16, 24]), st.data())
def test_a_plain_wav_is_not_given_to_libsndfile(channels: int, bits: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1), min_size=channels, max_size=40))
    values = values[: len(values) // channels * channels]
    content = b"".join(value.to_bytes(bits // 8, "little", signed=True) for value in values)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(audio.soundfile, "SoundFile")
        waveform, info = decode(chunked((b"fmt ", form_of(bits, channels, 16_000)), (b"data", content)), LIMITS)
    expected = np.rint(np.reshape(values, (-1, channels)).mean(axis=1) * 2.0 ** (24 - bits))
    assert np.array_equal(waveform.pcm, expected)
    assert (info.format, info.subtype, info.channels, info.sample_rate) == ("WAV", f"PCM_{bits}", channels, 16_000)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 2])
def test_what_is_no_plain_wav_goes_to_libsndfile(subtype: str, channels: int) -> None:
    extensible = encoded(noise(500, channels), form="WAVEX", subtype=subtype)
    assert struct.unpack("<H", extensible[20:22]) == (0xFFFE,)
    assert audio._plain_wav(extensible, "clip") is None
    for form, other in (("WAV", "PCM_U8"), ("WAV", "PCM_32"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("RF64", subtype)):
        assert audio._plain_wav(encoded(noise(500, channels), form=form, subtype=other), "clip") is None
    plain = encoded(noise(500, channels), subtype=subtype)
    assert decode(extensible, LIMITS)[0].id == decode(plain, LIMITS)[0].id


@pytest.mark.parametrize("size", [0, 0xFFFFFF00, 0xFFFFFFFF])
@pytest.mark.parametrize("bits", [16, 24])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_wav_whose_size_was_left_open_is_read_to_its_end(size: int, bits: int, channels: int) -> None:
    content = np.random.default_rng(0).integers(0, 256, 600 * channels, np.uint8).tobytes()
    whole = chunked((b"fmt ", form_of(bits, channels, 16_000)), (b"data", content))
    opened = whole[:40] + struct.pack("<I", size) + whole[44:]
    assert outcome(opened) == through_libsndfile(opened)
    if size:
        assert decode(opened, LIMITS)[0].id == decode(whole, LIMITS)[0].id


@settings(max_examples=60)
@given(
    missing=st.integers(1, 300),
    bits=st.sampled_from([16, 24]),
    channels=st.integers(1, 2),
    before=other_chunks,
)
def test_a_plain_wav_that_is_cut_is_refused(
    missing: int, bits: int, channels: int, before: list[tuple[bytes, bytes]]
) -> None:
    whole = chunked(*before, (b"fmt ", form_of(bits, channels, 16_000)), (b"data", bytes(300)))
    error = refusal(whole[:-missing])
    assert (error.reason, f"promises 300 bytes of samples, {300 - missing} are there" in str(error)) == (
        "truncated",
        True,
    )


@pytest.mark.parametrize("form", [b"", form_of(16, 1, 16_000)[:14], form_of(16, 0, 16_000), form_of(12, 1, 16_000)])
def test_a_wav_whose_format_makes_no_sense_is_refused_by_libsndfile_or_read_by_it(form: bytes) -> None:
    data = chunked((b"fmt ", form), (b"data", bytes(100)))
    assert audio._plain_wav(data, "clip") is None
    assert outcome(data) == through_libsndfile(data)
    data = chunked((b"data", bytes(100)), (b"fmt ", form_of(16, 1, 16_000)))  # the other way round
    assert outcome(data) == through_libsndfile(data)


@given(pcm24 | pcm16, rates)
def test_what_is_stored_is_decoded_to_the_same_waveform(pcm: list[int], rate: int) -> None:
    waveform = Waveform(np.array(pcm, np.int32), rate)
    again = decode_stored(encode_flac(waveform), "clip")
    assert again.pcm.dtype == np.int32
    assert (again.sample_rate, again.pcm.tolist(), again.id) == (rate, pcm, waveform.id)


@settings(max_examples=30)
@given(share=st.floats(0, 1, exclude_max=True))
def test_stored_audio_that_is_cut_is_damaged(share: float) -> None:
    whole = encoded(noise(20_000), form="FLAC")
    with pytest.raises(AudioError, match=r"^clip: its stored audio is damaged") as caught:
        decode_stored(whole[: int(share * len(whole))], "clip")
    assert caught.value.reason == "damaged"


SEEDS = [
    encoded(noise(300)),
    encoded(noise(300, 2), subtype="FLOAT"),
    encoded(noise(300), form="FLAC"),
    encoded(noise(3_000), form="OGG"),
    encoded(noise(3_000), form="MP3"),
]


@settings(max_examples=300)
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    headers=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4),
)
def test_damaged_bytes_give_audio_or_an_audio_error_and_nothing_else(seed, changes, headers):
    data = bytearray(seed)
    for place, value in changes:
        data[int(place * len(data))] = value
    for place, value in headers:
        data[place] = value
    try:
        waveform, info = decode(bytes(data), LIMITS, "clip")
    except AudioError:
        return
    encode_flac(waveform)  # whatever is accepted can be stored
    assert 0 < waveform.duration_s <= LIMITS.max_duration_s
    assert LIMITS.min_sample_rate <= info.sample_rate <= LIMITS.max_sample_rate
    assert np.isfinite(waveform.samples).all()


@given(st.binary(max_size=200))
def test_any_bytes_give_audio_or_an_audio_error(data):
    with contextlib.suppress(AudioError):
        decode(data, LIMITS)


def test_published_originals_decode_at_their_own_rates(speech_data):
    originals = sorted(path for path in (speech_data / "originals").rglob("*") if path.suffix in (".wav", ".ogg"))
    seen = set()
    for path in originals:
        waveform, info = decode(path.read_bytes(), LIMITS, str(path))
        assert 0.2 < waveform.duration_s < 10
        assert np.abs(waveform.samples).max() > 0.001
        again = decode(encode_flac(waveform), LIMITS)[0]
        assert again.id == waveform.id
        seen.add((info.format, info.channels, info.sample_rate))
    assert {("WAV", 1, 48_000), ("WAV", 2, 48_000), ("WAV", 1, 24_000), ("OGG", 1, 44_100)} <= seen


def test_real_speech_is_stored_in_16_bits(speech_data):
    for path in sorted(Path(speech_data / "speech" / "EMODB").glob("*.flac"))[:5]:
        waveform, info = decode(path.read_bytes(), LIMITS, str(path))
        assert info.subtype == "PCM_16"
        assert soundfile.info(io.BytesIO(encode_flac(waveform))).subtype == "PCM_16"
