"""What is measured of a recording: known level, noise, offset, pauses and bandwidth must come back."""

import importlib.util
import itertools

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import CorpusSource, DataConfig, TaskConfig, ValidateConfig
from kubevox.data.audio import Waveform, canonical
from kubevox.data.dataset import ingest
from kubevox.data.validation import read_rows, validate
from kubevox.data.validation.quality import measure

RATE = 16_000
installed = all(importlib.util.find_spec(name) for name in ("silero_vad", "onnxruntime"))


def tone(seconds=1.0, hertz=200.0, amplitude=0.3, rate=RATE):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def noise(count, seed=0):
    return np.random.default_rng(seed).standard_normal(count)


def bursts(seconds=3.0, rate=RATE, seed=0):
    """Syllables of a wide-band sound with pauses between them, as speech has."""
    time = np.arange(round(seconds * rate)) / rate
    envelope = np.clip(np.sin(2 * np.pi * 2.5 * time), 0, None) ** 0.5
    return 0.1 * envelope * noise(len(time), seed)


def measured(samples, rate=RATE):
    return measure(canonical(np.asarray(samples, dtype=np.float64), rate))


def with_noise(speech, snr_db, seed=1):
    level = np.sqrt(np.mean(speech**2) / 10 ** (snr_db / 10))
    return speech + level * noise(len(speech), seed)


@pytest.mark.parametrize("snr_db", [0, 5, 10, 20, 30])
@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_a_known_signal_to_noise_ratio_is_found_within_a_decibel(snr_db, rate):
    found = measured(0.5 * with_noise(bursts(rate=rate), snr_db), rate)
    assert found.snr_db == pytest.approx(snr_db, abs=1.0)


def test_noise_added_to_real_speech_is_found(speech_data):
    files = sorted((speech_data / "speech" / "RAVDESS").rglob("*.flac"))[::48]
    assert files
    for file, snr_db in itertools.product(files, (0, 10, 20)):
        speech, rate = soundfile.read(file)
        found = measured(with_noise(0.1 * speech / np.sqrt(np.mean(speech**2)), snr_db), rate)
        assert found.snr_db == pytest.approx(snr_db, abs=2.0), (file, snr_db)


def test_more_noise_never_looks_like_less():
    speech = bursts()
    ratios = [measured(with_noise(speech, snr_db)).snr_db for snr_db in range(-10, 45, 5)]
    assert ratios == sorted(ratios)


def test_pure_noise_has_no_signal_and_digital_pauses_no_noise():
    assert measured(0.1 * noise(RATE * 2)).snr_db < 0
    assert measured(np.concatenate([tone(), np.zeros(RATE)])).snr_db == 100.0


def test_silence_has_neither_a_ratio_nor_a_bandwidth():
    found = measured(np.zeros(RATE))
    assert (found.snr_db, found.bandwidth_hz, found.silence_ratio, found.rms_dbfs) == (None, None, 1.0, -140.0)


@pytest.mark.parametrize("samples", [1, 2, 100, 319, 3_199])
def test_recordings_of_a_few_samples_are_measured_too(samples):
    found = measured(0.1 * noise(samples))
    assert found.duration_s == samples / RATE
    assert found.snr_db is None
    assert 0 <= found.silence_ratio <= 1


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000, 96_000])
def test_upsampled_telephone_speech_is_seen_to_end_below_4_khz(rate):
    honest = bursts(rate=rate)
    telephone = soxr.resample(soxr.resample(honest, rate, 8_000), 8_000, rate)
    assert measured(honest, rate).bandwidth_hz > 0.97 * rate / 2
    assert 3_500 < measured(telephone, rate).bandwidth_hz < 4_300


def test_real_speech_that_was_a_telephone_s_is_told_from_what_was_not(speech_data):
    limit = ValidateConfig().min_bandwidth_hz
    for corpus in ("RAVDESS", "EMODB"):
        for file in sorted((speech_data / "speech" / corpus).rglob("*.flac"))[::40]:
            speech, rate = soundfile.read(file)
            narrow = soxr.resample(soxr.resample(speech, rate, 8_000), 8_000, rate)
            assert measured(speech, rate).bandwidth_hz > limit > measured(narrow, rate).bandwidth_hz, file


@pytest.mark.parametrize("offset", [-0.25, 0.0, 0.03])
def test_an_offset_is_found_and_changes_no_other_measure(offset):
    plain, moved = measured(bursts()), measured(bursts() + offset)
    assert moved.dc_offset == pytest.approx(abs(offset), abs=1e-3)
    assert moved.rms_dbfs == pytest.approx(plain.rms_dbfs, abs=0.01)
    assert moved.snr_db == pytest.approx(plain.snr_db, abs=0.5)
    assert moved.bandwidth_hz == pytest.approx(plain.bandwidth_hz, rel=0.01)


@pytest.mark.parametrize("silent_s", [0.0, 1.0, 3.0])
def test_the_share_of_silence_is_that_of_the_pauses(silent_s):
    found = measured(np.concatenate([0.2 * noise(RATE), 1e-5 * noise(int(RATE * silent_s))]))
    assert found.silence_ratio == pytest.approx(silent_s / (1 + silent_s), abs=0.02)


def test_level_and_peak_of_a_full_scale_sine():
    found = measured(tone(amplitude=1.0, hertz=100))
    assert found.rms_dbfs == pytest.approx(-3.01, abs=0.01)
    assert found.peak_dbfs == pytest.approx(0.0, abs=0.01)


def test_a_constant_offset_is_silence():
    assert measured(np.full(RATE, 0.5)).rms_dbfs == -140


def test_a_normalised_recording_is_not_clipped_and_an_overdriven_one_is():
    assert measured(tone(amplitude=1.0, hertz=440)).clipped_share < 0.01
    sixteen_bit = np.round(np.clip(tone(amplitude=2.0), -1, 32767 / 32768) * 32768) / 32768
    assert measured(sixteen_bit).clipped_share > 0.5


@given(st.lists(st.sampled_from([-(1 << 23), (1 << 23) - 1, 32767 << 8, 0, 8_000_000]), min_size=1, max_size=60))
def test_clipped_samples_are_counted_in_runs_of_three_or_more(values):
    at_rail = [abs(value) >= 32767 << 8 for value in values]
    clipped = 0
    i = 0
    while i < len(values):
        j = i
        while j < len(values) and at_rail[j]:
            j += 1
        clipped += j - i if j - i >= 3 else 0
        i = max(j, i + 1)
    found = measure(Waveform(np.array(values, dtype=np.int32), RATE)).clipped_share
    assert found == pytest.approx(clipped / len(values))


@given(st.integers(1, 6_000), st.sampled_from([8_000, 16_000, 44_100]), st.integers(0, 99), st.floats(0, 2))
@settings(max_examples=40)
def test_every_measure_stays_in_its_range(count, rate, seed, level):
    found = measured(np.clip(level * noise(count, seed), -1, 1), rate)
    assert 0 <= found.clipped_share <= 1
    assert 0 <= found.silence_ratio <= 1
    assert 0 <= found.dc_offset <= 1
    assert -140 <= found.rms_dbfs <= found.peak_dbfs + 0.01 <= 0.02
    assert found.snr_db is None or -20 <= found.snr_db <= 100
    assert found.bandwidth_hz is None or 0 <= found.bandwidth_hz <= rate / 2


REASONS = {
    "low_snr": lambda: with_noise(bursts(), 0),
    "mostly_silent": lambda: np.concatenate([bursts(1.0), np.zeros(9 * RATE)]),
    "dc_offset": lambda: bursts() + 0.1,
    "narrow_band": lambda: soxr.resample(soxr.resample(bursts(), RATE, 8_000), 8_000, RATE),
    "no_speech": lambda: np.concatenate([tone(hertz=1_000), np.zeros(RATE), 0.3 * noise(RATE)]),
}


@pytest.mark.skipif(not installed, reason="needs silero-vad and onnxruntime: pip install 'kubevox[vad]'")
def test_each_fault_of_a_recording_is_warned_of_by_its_own_reason(tmp_path):
    (tmp_path / "corpus" / "sad").mkdir(parents=True)
    for reason, make in REASONS.items():
        soundfile.write(tmp_path / "corpus" / "sad" / f"anna_{reason}.wav", make(), RATE)
    source = CorpusSource(name="folder", path=str(tmp_path / "corpus"))
    store = str(tmp_path / "store")
    version, _ = ingest(DataConfig(corpora=[source], publish_names=True), store)
    task = TaskConfig(name="mood", labels=["angry", "sad"])
    found = validate(version, task, ValidateConfig(vad=True), store)
    assert found.quarantined == 0
    warned = {row.source_id.partition("_")[2].removesuffix(".wav"): row for row in read_rows(found.uri)}
    for reason in REASONS:
        assert reason in warned[reason].warnings
        # Bursts of noise are no speech either; no other fault is seen where it is not.
        assert set(warned[reason].warnings) <= {reason, "no_speech"} or reason == "no_speech"
    assert all(row.speech_ratio is not None for row in warned.values())
    assert validate(version, task, ValidateConfig(), store).warnings.get("no_speech", 0) == 0
