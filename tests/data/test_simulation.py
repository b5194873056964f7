"""Batches made out of a corpus: who is in them, and how they differ from where they came from."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from kubevox.config import AudioLimits, CorpusSource, DataConfig, TaskConfig
from kubevox.data.audio import decode
from kubevox.data.dataset import ingest, read_utterances, resolve
from kubevox.data.dataset.growth import add
from kubevox.data.dataset.simulation import Shift, add_noise, limit_band, simulate
from kubevox.errors import ConfigError, CorpusError

TASK = TaskConfig(name="mood", labels=["angry", "happy", "neutral"], map={"ravdess": {"calm": "neutral", "sad": None}})
RATE = 16_000


@pytest.fixture(scope="module")
def ravdess(write_wav: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Six actors of RAVDESS, each calm, happy, sad and angry four times; one file is damaged."""
    folder = tmp_path_factory.mktemp("ravdess")
    for actor in range(1, 7):
        for emotion in (2, 3, 4, 5):
            for take in range(4):
                name = f"03-01-{emotion:02d}-01-{take // 2 + 1:02d}-{take % 2 + 1:02d}-{actor:02d}.wav"
                frequency = 150 + 40 * actor + 7 * emotion + take
                write_wav(folder / f"Actor_{actor:02d}" / name, 0.3, frequency=frequency, amplitude=0.1)
    (folder / "Actor_01" / "03-01-05-01-01-01-01.wav").write_bytes(b"no recording")
    return DataConfig(corpora=[CorpusSource(name="ravdess", path=str(folder))])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "recordings.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def waveforms(folder: Path) -> dict[str, str]:
    """Original source id to the id of the audio that is there."""
    limits = AudioLimits()
    return {row["source"]: decode((folder / row["path"]).read_bytes(), limits)[0].id for row in rows(folder)}


def originals(config: DataConfig) -> dict[str, str]:
    root = Path(str(config.corpora[0].path))
    found = {}
    for path in root.rglob("*.wav"):
        if path.stat().st_size > 100:
            waveform, _ = decode(path.read_bytes(), AudioLimits())
            found[f"ravdess:{path.relative_to(root).as_posix()}"] = waveform.id
    return found


def source_of(folder: Path) -> DataConfig:
    return DataConfig(corpora=[CorpusSource(name="folder", path=str(folder), options={"csv": "recordings.csv"})])


def test_no_recording_is_in_two_batches_and_none_is_of_another_task(ravdess: DataConfig, tmp_path: Path) -> None:
    made = simulate(ravdess, TASK, tmp_path, batches=4, size=12, base=20)
    assert [(one.name, one.recordings) for one in made] == [("base", 20), *((f"batch-0{n}", 12) for n in range(1, 5))]
    sources = [row["source"] for one in made for row in rows(Path(one.path))]
    assert len(set(sources)) == len(sources) == 68
    assert {row["raw_label"] for one in made for row in rows(Path(one.path))} == {"calm", "happy", "angry"}
    assert made[0].labels.keys() == {"angry", "happy", "neutral"}


def test_clean_recordings_are_there_sample_for_sample(ravdess: DataConfig, tmp_path: Path) -> None:
    simulate(ravdess, TASK, tmp_path, batches=2, size=15, shift=Shift(noise_snr_db=5.0), start_at=2)
    known = originals(ravdess)
    clean, noisy = (waveforms(tmp_path / f"batch-0{number}") for number in (1, 2))
    assert all(known[source] == id for source, id in clean.items())
    assert all(known[source] != id for source, id in noisy.items())


def test_the_same_seed_makes_the_same_files(ravdess: DataConfig, tmp_path: Path) -> None:
    shift = Shift(noise_snr_db=10.0, noise="pink", band_limit_hz=3000.0)
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        simulate(ravdess, TASK, tmp_path / name, batches=2, size=10, shift=shift, seed=seed)
    files = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two", "other")
    ]
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_a_recording_that_cannot_be_decoded_is_replaced_by_one_of_its_label(
    ravdess: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [made] = simulate(ravdess, TASK, tmp_path, batches=1, size=23, shift=Shift(labels={"angry": 1.0}))
    assert made.labels == {"angry": 23}
    assert "ravdess:Actor_01/03-01-05-01-01-01-01.wav" not in waveforms(Path(made.path))
    told = capsys.readouterr().err
    assert told == "" or "03-01-05-01-01-01-01.wav: left out" in told
    with pytest.raises(CorpusError, match="of 24 that the corpora have 0 are left"):
        simulate(ravdess, TASK, tmp_path / "all", batches=1, size=24, shift=Shift(labels={"angry": 1.0}))


def test_labels_have_their_shares_from_the_batch_on_that_shifts(ravdess: DataConfig, tmp_path: Path) -> None:
    made = simulate(ravdess, TASK, tmp_path, batches=3, size=10, shift=Shift(labels={"angry": 0.6}), start_at=3)
    assert [one.shifted for one in made] == [False, False, True]
    assert made[2].labels == {"angry": 6, "happy": 2, "neutral": 2}


def test_people_stay_who_they_are_in_a_dataset(ravdess: DataConfig, tmp_path: Path) -> None:
    """Base and batch are read from lists, and hold the people whom the corpus itself names."""
    simulate(ravdess, TASK, tmp_path / "made", batches=1, size=12, base=20)
    store = str(tmp_path / "store")
    ingest(source_of(tmp_path / "made" / "base"), store)
    version = add(source_of(tmp_path / "made" / "batch-01"), store, "batch-01").after
    lenient = ravdess.model_copy(update={"name": "whole", "max_rejected_share": 0.1})
    ingest(lenient, store)
    whole = {row.id: row for row in read_utterances(resolve(store, "whole", "current").shard_uris)}
    found = read_utterances(version.shard_uris)
    assert len(found) == 32
    for row in found:
        same = whole[row.id]
        assert (row.speaker, row.corpus, row.raw_label, row.sex, row.intensity, row.language) == (
            same.speaker,
            "ravdess",
            same.raw_label,
            same.sex,
            same.intensity,
            same.language,
        )


def test_machines_voices_stay_machines_voices(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    options = {"speakers": 3, "sentences": 1, "emotions": ["neutral", "anger"]}
    config = DataConfig(corpora=[CorpusSource(name="synthetic", options=options)])
    task = TaskConfig(name="mood", labels=["angry", "neutral"], map={"synthetic": {"anger": "angry"}})
    simulate(config, task, tmp_path / "made", batches=1, size=4)
    version, _ = ingest(source_of(tmp_path / "made" / "batch-01"), str(tmp_path / "store"))
    assert version.synthetic
    assert {row.corpus for row in read_utterances(version.shard_uris)} == {"synthetic"}


def test_what_was_done_is_written_down(ravdess: DataConfig, tmp_path: Path) -> None:
    simulate(ravdess, TASK, tmp_path, batches=2, size=5, shift=Shift(band_limit_hz=3400.0), start_at=2, seed=7)
    told = json.loads((tmp_path / "simulation.json").read_text())
    assert (told["seed"], told["start_at"], told["shift"]["band_limit_hz"]) == (7, 2, 3400.0)
    assert [batch["shifted"] for batch in told["batches"]] == [False, True]
    assert str(tmp_path) not in json.dumps(told)


def test_wav_holds_the_same_samples_as_flac(ravdess: DataConfig, tmp_path: Path) -> None:
    for form in ("flac", "wav"):
        simulate(ravdess, TASK, tmp_path / form, batches=1, size=8, shift=Shift(noise_snr_db=3.0), audio=form)  # type: ignore[arg-type]
    assert waveforms(tmp_path / "flac" / "batch-01") == waveforms(tmp_path / "wav" / "batch-01")
    assert {path.suffix for path in (tmp_path / "wav" / "batch-01" / "audio").iterdir()} == {".wav"}


def test_a_corpus_that_is_too_small_says_so_before_anything_is_written(ravdess: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"have 72 recordings .* 5 batches of 15 need 75"):
        simulate(ravdess, TASK, tmp_path / "x", batches=5, size=15)
    with pytest.raises(CorpusError, match="batch-02 needs 18 recordings of 'angry'"):
        simulate(ravdess, TASK, tmp_path / "x", batches=2, size=20, shift=Shift(labels={"angry": 0.9}))
    assert not (tmp_path / "x").exists()


def test_a_batch_that_is_there_is_not_written_over(ravdess: DataConfig, tmp_path: Path) -> None:
    simulate(ravdess, TASK, tmp_path, batches=1, size=3)
    with pytest.raises(CorpusError, match="batch-01: is there already"):
        simulate(ravdess, TASK, tmp_path, batches=2, size=3)
    assert not (tmp_path / "batch-02").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"shift": Shift(labels={"cross": 0.5})}, "label 'cross' is none of task 'mood'"),
        ({"shift": Shift(labels={"angry": 0.7, "happy": 0.5})}, "add up to 1.2"),
        ({"shift": Shift(labels={"angry": 0.5, "happy": 0.2, "neutral": 0.1})}, "add up to 0.8"),
        ({"shift": Shift(labels={"angry": -0.1})}, "not between 0 and 1"),
        ({"shift": Shift(band_limit_hz=0.0)}, "leaves nothing"),
        ({"shift": Shift(band_limit_hz=1e-3)}, "leaves nothing"),  # and a filter of as many taps as there is memory
        ({"shift": Shift(band_limit_hz=math.nan)}, "leaves nothing"),
        ({"shift": Shift(noise_snr_db=1e6)}, "out of any range"),
        ({"shift": Shift(noise_snr_db=math.nan)}, "out of any range"),
        ({"shift": Shift(noise_snr_db=3.0), "start_at": 3}, "would never begin"),
    ],
)
def test_a_shift_that_makes_no_sense_is_refused(
    ravdess: DataConfig, tmp_path: Path, options: dict[str, object], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        simulate(ravdess, TASK, tmp_path, batches=2, size=3, **options)  # type: ignore[arg-type]


@given(
    snr=st.floats(-10, 40), kind=st.sampled_from(["white", "pink"]), pause=st.floats(0, 2), level=st.floats(1e-4, 0.01)
)
def test_noise_is_as_far_below_speech_as_asked_whatever_pauses_there_are(
    snr: float, kind: str, pause: float, level: float
) -> None:
    tone = level * np.sin(2 * np.pi * 220 * np.arange(RATE) / RATE)
    samples = np.concatenate([tone, np.zeros(round(pause * RATE))])
    noise = add_noise(samples, RATE, snr, kind, np.random.default_rng(0)) - samples
    measured = 10 * np.log10(np.mean(np.square(tone)) / np.mean(np.square(noise)))
    assert measured == pytest.approx(snr, abs=0.05)


def test_what_would_not_fit_below_full_scale_is_made_quieter_as_a_whole() -> None:
    tone = np.sin(2 * np.pi * 220 * np.arange(RATE) / RATE)
    quiet, loud = (add_noise(level * tone, RATE, 0.0, "white", np.random.default_rng(0)) for level in (0.01, 0.9))
    assert np.abs(loud).max() == pytest.approx(0.99)
    assert loud / quiet == pytest.approx(loud[1] / quiet[1])


def test_pink_noise_falls_by_3_db_an_octave() -> None:
    silence = np.full(RATE * 8, 1e-6)
    mixed = add_noise(silence, RATE, -100.0, "pink", np.random.default_rng(0))
    power = np.square(np.abs(np.fft.rfft(mixed)))
    hertz = np.fft.rfftfreq(len(mixed), 1 / RATE)
    levels = [10 * np.log10(power[(hertz >= low) & (hertz < 2 * low)].mean()) for low in (125, 250, 500, 1000, 2000)]
    assert np.diff(levels) == pytest.approx([-3.01] * 4, abs=0.5)


@given(limit=st.sampled_from([300.0, 1000.0, 3400.0]), rate=st.sampled_from([8_000, 16_000, 44_100]))
def test_above_the_limit_nothing_is_left_and_below_it_nothing_is_changed(limit: float, rate: int) -> None:
    time = np.arange(rate) / rate
    low = np.sin(2 * np.pi * 0.7 * limit * time)
    high = np.sin(2 * np.pi * 1.01 * limit * time)
    filtered = limit_band(low + high, rate, limit)
    middle = slice(rate // 4, -rate // 4)
    assert len(filtered) == rate
    # In place, too: a filter that delayed would leave more than this.
    assert np.abs(filtered[middle] - low[middle]).max() < 2e-3


def test_a_limit_above_what_a_recording_holds_changes_nothing() -> None:
    samples = np.random.default_rng(0).standard_normal(100)
    assert limit_band(samples, 6_000, 3_400.0) is samples


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros(50), np.ones(1) * 0.1])
def test_silence_and_next_to_nothing_pass(samples: np.ndarray) -> None:
    assert len(add_noise(samples, RATE, 10.0, "pink", np.random.default_rng(0))) == len(samples)
    assert len(limit_band(samples, RATE, 3400.0)) == len(samples)


def test_real_speech_is_noisier_and_narrower_by_what_was_asked(speech_data: Path, tmp_path: Path) -> None:
    config = DataConfig(corpora=[CorpusSource(name="ravdess", path=str(speech_data / "speech" / "RAVDESS"))])
    task = TaskConfig(name="mood", labels=["angry", "happy"], map={"ravdess": {"calm": None, "neutral": None}})
    shift = Shift(noise_snr_db=15.0, band_limit_hz=3400.0)
    clean, shifted = simulate(config, task, tmp_path, batches=2, size=6, shift=shift, start_at=2)

    def above(folder: str) -> Sequence[float]:
        shares = []
        for path in sorted(Path(folder, "audio").iterdir()):
            samples, rate = soundfile.read(path)
            power = np.square(np.abs(np.fft.rfft(samples)))
            shares.append(power[np.fft.rfftfreq(len(samples), 1 / rate) > 3400].sum() / power.sum())
        return shares

    assert max(above(shifted.path)) < 1e-6 < min(above(clean.path))
    assert Counter(clean.labels).total() == 6
