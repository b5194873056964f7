"""Every format that is taken: whole files decode to their full length, cut and damaged ones are refused."""

import functools
import io
import itertools
import json
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import AudioLimits
from kubevox.data import containers, ffmpeg
from kubevox.data.audio import decode, encode_flac
from kubevox.errors import AudioError

LIMITS = AudioLimits()


def speechlike(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    voice = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 12)) * (0.6 + 0.4 * np.sin(9 * time))
    noise = np.random.default_rng(0).standard_normal((len(time), channels))
    return 0.1 * voice[:, None] + 0.01 * noise


@functools.cache
def encoded(form: str, subtype: str, rate: int = 16_000, channels: int = 1, seconds: float = 1.0, **options) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, speechlike(seconds, rate, channels), rate, format=form, subtype=subtype, **options)
    return buffer.getvalue()


def streamed(flac: bytes) -> bytes:
    """The FLAC file as an encoder writes it that cannot go back to its header."""
    return flac[:21] + bytes([flac[21] & 0xF0, 0, 0, 0, 0]) + flac[26:]


LOSSLESS = [
    *(("WAV", subtype) for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")),
    ("WAVEX", "PCM_24"),
    ("WAVEX", "FLOAT"),
    ("RF64", "PCM_16"),
    ("RF64", "PCM_32"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
]
LOSSY = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]
OPUS_RATES = {8_000, 12_000, 16_000, 24_000, 48_000}
MP3_RATES = {8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000}


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize(("form", "subtype"), LOSSLESS + LOSSY)
def test_every_format_keeps_length_and_rate_with_one_channel_and_more(form, subtype, rate):
    if (subtype == "OPUS" and rate not in OPUS_RATES) or (form == "MP3" and rate not in MP3_RATES):
        pytest.skip(f"{subtype} has no rate of {rate} Hz")
    for channels in (1, 2) if form == "MP3" else (1, 2, 6):
        waveform, info = decode(encoded(form, subtype, rate, channels, 0.3), LIMITS)
        assert (info.channels, waveform.sample_rate, len(waveform.pcm)) == (channels, rate, round(0.3 * rate))
        difference = waveform.samples - speechlike(0.3, rate, channels).mean(axis=1)
        assert np.sqrt(np.mean(difference**2)) < 0.03


FILES = {
    **{f"{form} {subtype}": encoded(form, subtype) for form, subtype in LOSSLESS + LOSSY},
    "RIFX": encoded("WAV", "PCM_16", endian="BIG"),
    "streamed FLAC of one frame": streamed(encoded("FLAC", "PCM_16", 8_000, 1, 0.5)),
    "behind ID3": b"ID3\4\0\0\0\0\0\4tags" + encoded("FLAC", "PCM_16"),
    "stereo Vorbis": encoded("OGG", "VORBIS", 44_100, 2),
    "stereo Opus": encoded("OGG", "OPUS", 48_000, 2),
    "stereo MP3": encoded("MP3", "MPEG_LAYER_III", 44_100, 2),
    "slow MP3": encoded("MP3", "MPEG_LAYER_III", 8_000),
    "constant MP3": encoded("MP3", "MPEG_LAYER_III", 22_050, bitrate_mode="CONSTANT"),
    "average MP3": encoded("MP3", "MPEG_LAYER_III", 48_000, bitrate_mode="AVERAGE"),
}
MP3S = ["MP3 MPEG_LAYER_III", "stereo MP3", "constant MP3", "slow MP3", "average MP3"]
WHOLE = {name: decode(data, LIMITS)[0] for name, data in FILES.items()}


def outcome(data: bytes) -> tuple[str | None, int]:
    """Why the bytes are refused, or how many samples they hold."""
    try:
        return None, len(decode(data, LIMITS)[0].pcm)
    except AudioError as error:
        return error.reason, 0


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60)
@given(share=st.floats(0, 1, exclude_max=True), near_end=st.booleans())
def test_a_file_cut_anywhere_is_refused_or_still_whole(name, share, near_end):
    data = FILES[name]
    kept = len(data) - 1 - int(share * 1_500) if near_end else int(share * len(data))
    reason, length = outcome(data[: max(1, kept)])
    assert reason in ("truncated", "not_audio", "empty") or length == len(WHOLE[name].pcm)


@pytest.mark.parametrize("name", ["OGG VORBIS", "OGG OPUS", "MP3 MPEG_LAYER_III"])
def test_no_place_to_cut_a_lossy_file_goes_unnoticed(name):
    data = FILES[name]
    for kept in range(1, len(data), 1 if len(data) < 8_000 else 7):
        with pytest.raises(AudioError) as caught:
            decode(data[:kept], LIMITS)
        assert caught.value.reason in ("truncated", "not_audio")


@pytest.mark.parametrize("name", ["OGG VORBIS", "OGG OPUS", "stereo Opus"])
@settings(max_examples=80)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_an_ogg_is_noticed(name, share, bit):
    data = bytearray(FILES[name])
    data[int(share * len(data))] ^= 1 << bit
    with pytest.raises(AudioError) as caught:
        decode(bytes(data), LIMITS)
    assert caught.value.reason in ("truncated", "not_audio", "chained")


def pages_of(ogg: bytes) -> list[bytes]:
    starts = [i for i in range(len(ogg)) if ogg[i : i + 4] == b"OggS"] + [len(ogg)]
    return [ogg[start:end] for start, end in itertools.pairwise(starts)]


@pytest.mark.parametrize("name", ["OGG VORBIS", "OGG OPUS"])
def test_an_ogg_without_one_of_its_pages_is_refused(name):
    pages = pages_of(encoded("OGG", name.split()[1], seconds=5.0))
    assert len(pages) > 4
    for missing in range(2, len(pages)):
        with pytest.raises(AudioError, match=r"is missing|no last page") as caught:
            decode(b"".join(pages[:missing] + pages[missing + 1 :]), LIMITS)
        assert caught.value.reason == "truncated"


def test_recordings_chained_in_one_ogg_are_refused_since_only_the_first_would_be_heard():
    other = encoded("OGG", "VORBIS", 16_000, 1, 0.5)
    with pytest.raises(AudioError, match=r"clip: holds several recordings") as caught:
        decode(FILES["OGG VORBIS"] + other, LIMITS, "clip")
    assert caught.value.reason == "chained"


def test_what_follows_the_last_page_of_an_ogg_is_left_alone():
    assert decode(FILES["OGG OPUS"] + b"TAG" + bytes(125), LIMITS)[0].id == WHOLE["OGG OPUS"].id


def id3(content: bytes) -> bytes:
    size = len(content)
    return b"ID3\x04\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + content


APE = b"APETAGEX" + struct.pack("<IIII", 2000, 40, 1, 0) + bytes(8) + bytes(40)


@pytest.mark.parametrize("name", MP3S)
def test_tags_around_an_mp3_do_not_matter(name):
    data, whole = FILES[name], WHOLE[name].id
    picture = id3(b"APIC" + bytes(range(256)) * 300)  # full of what looks like frames
    for dressed in (
        picture + data,
        id3(b"") + picture + data,
        data + b"TAG" + b"x" * 125,
        data + APE,
        picture + data + APE + b"TAG" + bytes(125),
        data + b"LYRICSBEGIN" + b"la" * 50,
        data + bytes(500),
    ):
        assert decode(dressed, LIMITS)[0].id == whole


def frames_of(mp3: bytes) -> list[bytes]:
    frames, position = [], 0
    while position < len(mp3):
        length = containers._mpeg_frame(mp3, position)
        frames.append(mp3[position : position + length])
        position += length
    return frames


def sounding(frames: int, rate: int) -> int:
    """Samples in so many frames of layer III, less the 529 by which every decoder is late."""
    return frames * (1152 if rate >= 32_000 else 576) - 529


@pytest.mark.parametrize("name", MP3S)
def test_mp3s_strung_together_are_heard_to_the_end(name):
    data = FILES[name]
    single, double = decode(data, LIMITS)[0], decode(data + data, LIMITS)[0]
    assert len(double.pcm) == sounding(2 * len(frames_of(data)) - 1, single.sample_rate) > 2 * len(single.pcm)


@pytest.mark.parametrize("name", MP3S)
def test_an_mp3_that_does_not_say_its_length_is_taken_whole_and_refused_within_a_frame(name):
    frames = frames_of(FILES[name])[1:]  # without the frame that holds the number
    data = b"".join(frames)
    waveform, info = decode(data, LIMITS)
    assert info.size_bytes == len(data)
    # Every frame is heard, those too in which the encoder came and went.
    assert len(waveform.pcm) == sounding(len(frames), info.sample_rate)
    heard, known = waveform.samples, WHOLE[name].samples
    offset = min(range(2_000), key=lambda start: np.abs(heard[start : start + 4_000] - known[:4_000]).max())
    assert np.abs(heard[offset : offset + len(known)] - known).max() < 1e-5
    for cut in range(1, len(frames[-1])):
        with pytest.raises(AudioError, match="last frame is not whole"):
            decode(data[:-cut], LIMITS)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_mp3_that_lacks_frames_which_it_counts_is_refused(count):
    frames = frames_of(FILES["stereo MP3"])
    with pytest.raises(AudioError, match=rf"{len(frames) - 1 - count} of {len(frames) - 1} frames") as caught:
        decode(b"".join(frames[:-count]), LIMITS)
    assert caught.value.reason == "truncated"


def test_an_encoder_may_count_the_frame_that_holds_the_number():
    data = bytearray(FILES["stereo MP3"])
    place = data.index(b"Xing") + 8
    data[place : place + 4] = struct.pack(">I", len(frames_of(bytes(data))))
    assert decode(bytes(data), LIMITS)[1].format == "MP3"


def test_damage_between_the_frames_of_an_mp3_is_noticed():
    frames = frames_of(FILES["stereo MP3"])
    for damaged in (
        b"".join([*frames[:9], b"\0" + frames[9][1:], *frames[10:]]),
        b"".join([*frames[:9], b"some other bytes", *frames[9:]]),
    ):
        with pytest.raises(AudioError, match="no frame begins at byte"):
            decode(damaged, LIMITS)
    between = b"".join([*frames[:9], id3(b"TIT2"), *frames[9:]])
    assert len(decode(between, LIMITS)[0].pcm) == len(WHOLE["stereo MP3"].pcm)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("frames", [1, 15, 16, 17, 4_096, 4_097, 12_288, 30_001])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_flac_that_was_streamed_is_the_same_recording(subtype, frames, channels):
    flac = encoded("FLAC", subtype, 16_000, channels, frames / 16_000)
    expected = decode(flac, LIMITS)[0]
    assert len(expected.pcm) == frames
    for data in (streamed(flac), id3(b"x") + streamed(flac), streamed(flac) + b"TAG" + bytes(125)):
        assert decode(data, LIMITS)[0].id == expected.id


def test_published_originals_are_whole_and_cut_ones_are_not(speech_data):
    files = sorted(path for path in (speech_data / "originals").rglob("*") if path.suffix == ".ogg")
    assert files
    for path in files:
        data = path.read_bytes()
        decode(data, LIMITS, str(path))
        for share in np.random.default_rng(0).random(20):
            with pytest.raises(AudioError):
                decode(data[: int(share * len(data))], LIMITS)


@pytest.mark.parametrize("form", ["AIFF", "AU", "CAF", "W64", "NIST", "VOC"])
def test_other_formats_are_not_tried(form):
    with pytest.raises(AudioError, match=r"clip: not a recording: no WAV, FLAC, Ogg, MP3 or M4A") as caught:
        decode(encoded(form, "PCM_16"), LIMITS, "clip")
    assert caught.value.reason == "not_audio"


@pytest.mark.parametrize("values", [[1e308, 1e308], [-1e308, -1e308], [3e38, -3e38], [1e-320, 0.5]])
def test_floats_of_any_size_are_clipped_or_refused_without_a_warning(values):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full((10, 2), values), 16_000, format="WAV", subtype="DOUBLE")
    single = io.BytesIO()
    soundfile.write(single, np.array(values), 16_000, format="WAV", subtype="DOUBLE")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert outcome(buffer.getvalue()) in [(None, 10), ("not_finite", 0)]  # their sum may not be
        clipped = decode(single.getvalue(), LIMITS)[0].samples
    assert np.allclose(clipped, np.clip(values, -1, 1), atol=2.0**-22)


NEEDLE = b"Jane Doe, 1 Private Road"


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def tagged() -> dict[str, bytes]:
    files = {}
    for form, subtype in (
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("FLAC", "PCM_16"),
        ("MP3", "MPEG_LAYER_III"),
        ("WAV", "PCM_16"),
    ):
        buffer = io.BytesIO()
        with soundfile.SoundFile(buffer, "w", 16_000, 1, subtype, format=form) as file:
            file.artist = file.comment = file.title = NEEDLE.decode()
            file.write(speechlike(0.3, 16_000))
        files[f"{form} {subtype}"] = buffer.getvalue()
    flac = encoded("FLAC", "PCM_16", seconds=0.3)
    picture = struct.pack(">II", 3, 9) + b"image/png" + struct.pack(">I", len(NEEDLE)) + NEEDLE + bytes(20)
    files["FLAC with a picture"] = flac[:42] + bytes([6]) + len(picture).to_bytes(3, "big") + picture + flac[42:]
    files["FLAC behind ID3"] = id3(b"TPE1" + NEEDLE) + flac
    wav = encoded("WAV", "PCM_24", seconds=0.3)
    extra = (
        chunk(b"LIST", b"INFO" + chunk(b"IART", NEEDLE)) + chunk(b"bext", NEEDLE + bytes(602)) + chunk(b"id3 ", NEEDLE)
    )
    files["WAV in front"] = wav[:12] + extra + wav[12:]
    files["WAV behind"] = wav + extra
    files["MP3 in front and behind"] = (
        id3(b"APIC" + NEEDLE) + encoded("MP3", "MPEG_LAYER_III", seconds=0.3) + b"TAG" + NEEDLE.ljust(125, b"\0")
    )
    return files


@pytest.mark.parametrize("name", sorted(tagged()))
def test_no_tag_or_picture_of_a_source_is_stored(name):
    data = tagged()[name]
    assert NEEDLE in data
    flac = encode_flac(decode(data, LIMITS)[0])
    assert NEEDLE not in flac
    assert b"Jane" not in flac
    blocks, position, last = {}, 4, False
    while not last:
        last, kind = bool(flac[position] & 0x80), flac[position] & 0x7F
        size = int.from_bytes(flac[position + 1 : position + 4], "big")
        blocks[kind] = flac[position + 4 : position + 4 + size]
        position += 4 + size
    assert set(blocks) <= {0, 1, 3, 4}  # what is needed, padding, seek points; and a comment block
    if 4 in blocks:  # that names the encoder and nothing else
        vendor = int.from_bytes(blocks[4][:4], "little")
        assert blocks[4][4 + vendor :] == bytes(4)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 20_000_000,
        b"ID3\x04\0\0\0\0\0\0" + b"\xff" * 20_000_000,
        (b"\xff\xf3\x10\xc4" + bytes(20)) * 800_000,
        encoded("FLAC", "PCM_16")[:21] + bytes(5) + b"\xff\xf8\xc9\x08\0" * 4_000_000,
        b"".join(b"OggS\0" + struct.pack("<BqIIIB", 2 if n == 0 else 0, 0, 1, n, 0, 0) for n in range(40_000)),
        b"\0\0\0\x08ftyp" * 2_500_000,
    ],
    ids=["markers", "markers behind ID3", "tiny frames", "frames of FLAC", "empty pages", "boxes"],
)
def test_what_is_made_to_keep_the_reader_busy_does_not_for_long(data, monkeypatch):
    monkeypatch.setattr(containers, "_ogg_checksum", lambda page: 0)
    started = time.process_time()
    with pytest.raises(AudioError):
        decode(data, LIMITS)
    assert time.process_time() - started < 3


def boxes(*contents: tuple[bytes, bytes]) -> bytes:
    return b"".join(struct.pack(">I", 8 + len(content)) + name + content for name, content in contents)


ENTRY = b"stsd" + bytes(4) + struct.pack(">II", 1, 36) + b"mp4a"
M4A = boxes((b"ftyp", b"M4A \0\0\0\0"), (b"moov", ENTRY), (b"mdat", b"a recording"))


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """``stand_in(code)``: a program named ffmpeg, alone on the PATH, runs the code; ``source`` is the input's path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(code: str) -> Path:
        program = folder / "ffmpeg"
        program.write_text(
            f"#!{sys.executable}\nimport os, sys, time\nout = sys.stdout.buffer\n"
            f"source = sys.argv[sys.argv.index('-i') + 1]\nkept = {str(tmp_path)!r}\n{code}\n"
        )
        program.chmod(0o755)
        return program

    return install


def refusal(data: bytes, limits: AudioLimits = LIMITS) -> AudioError:
    with pytest.raises(AudioError) as caught:
        decode(data, limits, "folder/clip.m4a")
    assert str(caught.value).startswith("folder/clip.m4a: ")
    assert len(str(caught.value).splitlines()) == 1
    assert "/tmp" not in str(caught.value)
    return caught.value


def test_without_ffmpeg_an_m4a_is_refused_and_told_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    error = refusal(M4A)
    assert (error.reason, "ffmpeg, which is not on the PATH; install it, or convert" in str(error)) == (
        "no_decoder",
        True,
    )


def test_only_a_container_of_its_own_is_given_to_ffmpeg(stand_in, tmp_path):
    stand_in("open(kept + '/called', 'w'); out.write(b'x')")
    for data in (
        b"#EXTM3U\nhttp://127.0.0.1/x\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"\xff\xf1\x50\x80" * 99,
    ):
        assert refusal(data).reason == "not_audio"
    assert not (tmp_path / "called").exists()


def test_what_ffmpeg_decodes_is_the_waveform(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    wav = bytearray(encoded("WAV", "FLOAT", 44_100, 2))
    (tmp_path / "wav").write_bytes(wav)
    stand_in(
        "import json; json.dump([sys.argv[1:], dict(os.environ), open(source, 'rb').read().decode('latin1'),"
        " sys.stdin.read()], open(kept + '/seen', 'w'))\n"
        "out.write(open(kept + '/wav', 'rb').read())"
    )
    waveform, info = decode(M4A, LIMITS, "clip")
    assert waveform.id == decode(bytes(wav), LIMITS)[0].id
    assert (info.format, info.subtype, info.channels, info.sample_rate) == ("M4A", "AAC", 2, 44_100)
    assert info.size_bytes == len(M4A)
    arguments, environment, source, stdin = json.loads((tmp_path / "seen").read_text())
    assert (source, stdin) == (M4A.decode("latin1"), "")
    assert "AWS_SECRET_ACCESS_KEY" not in environment
    words = " ".join(arguments)
    for option in ("-nostdin", "-protocol_whitelist file", "-f mov", "-map 0:a:0", "-t 60.500", "-xerror"):
        assert option in words
    assert not Path(arguments[arguments.index("-i") + 1]).exists()


def test_the_limits_hold_for_what_ffmpeg_decodes(stand_in, tmp_path):
    (tmp_path / "wav").write_bytes(encoded("WAV", "FLOAT", 16_000, 1, 1.5))
    stand_in("out.write(open(kept + '/wav', 'rb').read())")
    assert refusal(M4A, AudioLimits(max_duration_s=1.0)).reason == "too_long"
    assert refusal(M4A, AudioLimits(min_sample_rate=32_000)).reason == "sample_rate"
    stand_in("out.write(open(kept + '/wav', 'rb').read()[:40])")
    assert refusal(M4A).reason == "truncated"
    stand_in("pass")
    assert refusal(M4A).reason in ("empty", "not_audio")


def test_an_ffmpeg_that_floods_is_stopped(stand_in):
    stand_in("while True: out.write(bytes(1 << 16)); sys.stderr.write('x' * 1000)")
    error = refusal(M4A, AudioLimits(max_duration_s=1.0, max_sample_rate=16_000, max_channels=1))
    assert error.reason == "too_long"


@pytest.mark.parametrize("closes", ["", "os.close(1); os.close(2); "])
def test_an_ffmpeg_that_hangs_is_ended_with_its_children(stand_in, tmp_path, monkeypatch, closes):
    monkeypatch.setattr(ffmpeg, "TIMEOUT_S", 0.6)
    stand_in(f"child = os.fork()\nif child: open(kept + '/child', 'w').write(str(child))\n{closes}time.sleep(60)")
    started = time.monotonic()
    error = refusal(M4A)
    assert time.monotonic() - started < 10
    assert (error.reason, "did not decode it within 0.6 s" in str(error)) == ("truncated", True)
    child = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    while child.exists() and child.read_text().split()[2] != "Z":
        assert time.monotonic() - started < 10
        time.sleep(0.02)


def test_what_ffmpeg_complains_of_is_told_without_its_paths(stand_in):
    stand_in(
        "sys.stderr.write('first\\n' + source + ': Invalid data\\nfound\\r\\n' + source + ': at last\\n'); sys.exit(3)"
    )
    error = refusal(M4A)
    assert (error.reason, str(error)) == (
        "truncated",
        "folder/clip.m4a: damaged or incomplete (ffmpeg: at last)",
    )
    stand_in("os.kill(os.getpid(), 11)")
    assert f"ffmpeg ended with status {-signal.SIGSEGV}" in str(refusal(M4A))


def test_an_ffmpeg_that_cannot_be_run_is_named(stand_in):
    program = stand_in("")
    program.write_bytes(b"#!/no/such/interpreter\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(AudioError, match=r"clip: .*/ffmpeg cannot be run \(No such file or directory\)") as caught:
        decode(M4A, LIMITS, "clip")
    assert caught.value.reason == "no_decoder"


def test_an_m4a_that_is_cut_is_refused_before_ffmpeg_sees_it(stand_in, tmp_path):
    stand_in("open(kept + '/called', 'w')")
    for kept in range(8, len(M4A)):
        assert refusal(M4A[:kept]).reason == "truncated"
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("codec", ["aac", "alac"])
@pytest.mark.parametrize("first", [True, False], ids=["description first", "description last"])
def test_a_real_m4a_is_decoded(codec, first, tmp_path):
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("no ffmpeg on the PATH")
    source, made = tmp_path / "source.wav", tmp_path / "made.m4a"
    source.write_bytes(encoded("WAV", "PCM_16", 44_100, 2, 2.0))
    layout = ["-movflags", "+faststart"] if first else []
    tags = ["-metadata", f"artist={NEEDLE.decode()}"]
    subprocess.run(
        [program, "-nostdin", "-loglevel", "error", "-i", source, "-c:a", codec, *tags, *layout, made], check=True
    )
    data = made.read_bytes()
    waveform, info = decode(data, LIMITS, "clip")
    assert (info.format, info.subtype, info.channels, info.sample_rate) == ("M4A", codec.upper(), 2, 44_100)
    assert abs(waveform.duration_s - 2.0) < 0.06
    if codec == "alac":
        assert waveform.id == decode(source.read_bytes(), LIMITS)[0].id
    assert NEEDLE in data
    assert NEEDLE not in encode_flac(waveform)
    for share in np.random.default_rng(0).random(10):
        assert refusal(data[: 8 + int(share * (len(data) - 8))]).reason == "truncated"
    assert refusal(data, AudioLimits(max_duration_s=1.0)).reason == "too_long"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("constant.mp3", "-c:a libmp3lame -b:a 128k"),
        ("variable.mp3", "-c:a libmp3lame -q:a 4"),
        ("unsaid.mp3", "-c:a libmp3lame -q:a 4 -write_xing 0 -id3v2_version 0"),
        ("old.mp3", "-c:a libmp3lame -b:a 64k -ar 22050 -write_id3v1 1 -metadata title=x"),
        ("tagged.mp3", "-c:a libmp3lame -b:a 320k -ar 48000 -write_apetag 1 -metadata title=x"),
        ("vorbis.ogg", "-c:a libvorbis"),
        ("short-pages.ogg", "-c:a libvorbis -page_duration 20000"),
        ("opus.opus", "-c:a libopus -ar 48000"),
        ("long-pages.opus", "-c:a libopus -b:a 12k -ac 1 -ar 48000 -page_duration 5000000"),
        ("piped.flac", "-c:a flac -f flac pipe:1"),
        ("piped-deep.flac", "-c:a flac -sample_fmt s32 -ar 96000 -f flac pipe:1"),
        ("piped.wav", "-c:a pcm_s16le -f wav pipe:1"),
        ("piped-float.wav", "-c:a pcm_f32le -f wav pipe:1"),
        ("large.wav", "-c:a pcm_s24le -rf64 always"),
        ("fragments.m4a", "-c:a aac -movflags +frag_keyframe+empty_moov"),
    ],
)
def test_whole_files_of_other_encoders_are_taken_whole(name, options, tmp_path):
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("no ffmpeg on the PATH")
    source, made = tmp_path / "source.wav", tmp_path / name
    source.write_bytes(encoded("WAV", "PCM_16", 44_100, 2, 3.0))
    command = [program, "-nostdin", "-loglevel", "error", "-i", source, *options.split()]
    if "pipe:1" in options:
        made.write_bytes(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    else:
        subprocess.run([*command, made], check=True)
    assert 3.0 - 0.001 <= decode(made.read_bytes(), LIMITS, name)[0].duration_s < 3.12
