"""A folder salted with every kind of bad file: each ends in the right place, for the right reason, and none is lost."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

from kubevox.config import CorpusSource, DataConfig, TaskConfig, ValidateConfig
from kubevox.data.dataset import DatasetVersion, ingest, read_rejects
from kubevox.data.validation import Row, Validation, read_rows, validate

RATE = 16_000
TASK = TaskConfig(name="mood", labels=["angry", "happy", "sad"])


def speech(seconds: float = 1.5, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Bursts of a voice-like sound with pauses, each seed another."""
    chance = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    voice = sum(np.sin(2 * np.pi * k * (120 + 3 * seed) * time) / k for k in range(1, 20))
    syllables = np.clip(np.sin(2 * np.pi * 3 * time + seed), 0, None)
    return 0.1 * voice * syllables + 0.0005 * chance.standard_normal(len(time))


def truncated(path: Path) -> None:
    soundfile.write(path, speech(seed=1), RATE)
    path.write_bytes(path.read_bytes()[:-5000])


def zero_length(path: Path) -> None:
    path.write_bytes(b"")


def text_as_wav(path: Path) -> None:
    path.write_text("Dear Sir or Madam,\n" * 300)


def stereo(path: Path) -> None:
    soundfile.write(path, np.stack([speech(seed=2), 0.5 * speech(seed=2)], axis=1), RATE)


def eight_bit(path: Path) -> None:
    soundfile.write(path, speech(seed=3), RATE, subtype="PCM_U8")


def at_96_khz(path: Path) -> None:
    soundfile.write(path, speech(rate=96_000, seed=4), 96_000)


def silent(path: Path) -> None:
    soundfile.write(path, np.zeros(RATE * 2), RATE)


def clipped(path: Path) -> None:
    soundfile.write(path, np.clip(40 * speech(seed=5), -1, 1), RATE)


def offset(path: Path) -> None:
    soundfile.write(path, speech(seed=6) + 0.2, RATE)


def duplicate(path: Path) -> None:
    # Another name, another container: the same sound.
    samples, rate = soundfile.read(path.parent / "s1_0.wav", dtype="int16")
    soundfile.write(path.with_suffix(".flac"), samples, rate)


def tenth_of_a_second(path: Path) -> None:
    soundfile.write(path, speech(0.1, seed=7), RATE)


def wrong_label(path: Path) -> None:
    path = path.parent.parent / "jealous" / path.name
    path.parent.mkdir()
    soundfile.write(path, speech(seed=8), RATE)


# What is made, where it ends, and the reason it is given there.
KINDS = {
    truncated: ("failed", "truncated"),
    zero_length: ("failed", "empty"),
    text_as_wav: ("failed", "not_audio"),
    stereo: ("accepted", None),
    eight_bit: ("accepted", None),
    at_96_khz: ("accepted", None),
    silent: ("quarantined", "silent"),
    clipped: ("quarantined", "clipped"),
    offset: ("accepted", "dc_offset"),  # a warning
    duplicate: ("quarantined", "duplicate"),
    wrong_label: ("quarantined", "label_unknown"),
    tenth_of_a_second: ("quarantined", "duration_too_short"),
}


class Outcome(NamedTuple):
    version: DatasetVersion
    validation: Validation
    rejects: dict[str, str]
    rows: dict[str, Row]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> Outcome:
    root = tmp_path_factory.mktemp("salted")
    for number, label in enumerate(TASK.labels):
        for speaker in range(4):
            path = root / "corpus" / label / f"s{speaker}_0.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, speech(seed=20 + 10 * number + speaker), RATE)
    for kind in KINDS:
        kind(root / "corpus" / "sad" / f"s3_{kind.__name__}.wav")
    source = CorpusSource(name="folder", path=str(root / "corpus"))
    store = str(root / "store")
    version, _ = ingest(DataConfig(corpora=[source], publish_names=True, max_rejected_share=0.2), store)
    checked = validate(version, TASK, ValidateConfig(max_quarantined_share=0.5), store)
    return Outcome(
        version,
        checked,
        {Path(row["source_id"]).stem.partition("_")[2]: row["reason"] for row in read_rejects(version)},
        {Path(row.source_id).stem.partition("_")[2]: row for row in read_rows(checked.uri)},
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_kind_of_file_ends_where_it_belongs(kind, outcome):
    where, reason = KINDS[kind]
    name = kind.__name__
    if where == "failed":
        assert outcome.rejects[name] == reason
        assert name not in outcome.rows
        return
    row = outcome.rows[name]
    assert name not in outcome.rejects
    assert row.accepted == (where == "accepted"), (row.reasons, row.details)
    if where == "quarantined":
        assert reason in row.reasons
    else:
        assert row.reasons == ()
        assert (reason in row.warnings) if reason else not set(row.warnings) - {"narrow_band"}, row.warnings


def test_nothing_that_was_found_is_lost(outcome):
    found = 3 * 4 + len(KINDS)
    told = outcome.version.corpora[0]
    assert told["found"] == found
    assert found == told["stored"] + told["failed"]
    assert outcome.validation.utterances == told["stored"]
    assert outcome.validation.rejects == told["failed"] == 3
    assert found == outcome.validation.accepted + outcome.validation.quarantined + outcome.validation.rejects


def test_what_is_refused_is_refused_for_what_is_wrong_and_nothing_else(outcome):
    expected = {kind.__name__: reason for kind, (where, reason) in KINDS.items() if where == "quarantined"}
    refused = {name: set(row.reasons) for name, row in outcome.rows.items() if not row.accepted}
    assert set(refused) == set(expected)
    for name, reasons in refused.items():
        assert reasons - {"source_too_small"} == {expected[name]}
