"""Validation of real dataset versions, made from generated recordings."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import CorpusSource, DataConfig, TaskConfig, ValidateConfig
from kubevox.data.audio import Waveform, canonical
from kubevox.data.dataset import Utterance, ingest
from kubevox.data.validation import accepted_source_ids, load_validation, read_rows, validate
from kubevox.data.validation.checks import CHECKS, duplicates, examine, measure
from kubevox.errors import StorageError, ValidationError
from kubevox.page import SYNTHETIC_NOTICE

RATE = 16_000
TASK = TaskConfig(name="mood", labels=["angry", "sad"], map={"*": {"calm": None, "cross": "angry"}})
CONFIG = ValidateConfig(min_bytes=100)
LAX = CONFIG.model_copy(update={"max_quarantined_share": 1.0})


def tone(seconds=1.0, hertz=200.0, amplitude=0.3, rate=RATE):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def write(folder, name, samples, rate=RATE):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)


@pytest.fixture
def recordings(tmp_path):
    """Eight good recordings of two speakers."""
    folder = tmp_path / "recordings"
    for i in range(4):
        for label, base in (("angry", 300), ("sad", 120)):
            write(folder, f"{label}/anna_{i}.wav" if i % 2 else f"{label}/bert_{i}.wav", tone(hertz=base + 10 * i))
    return folder


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "store")


def dataset_of(folder, store, **config):
    source = CorpusSource(name="folder", path=str(folder))
    return ingest(DataConfig(corpora=[source], max_rejected_share=0.9, **config), store)[0]


def reasons(validation):
    return {row.source_id: row.reasons for row in read_rows(validation.uri) if not row.accepted}


def rewrite(dataset, change):
    """Change the rows of a stored dataset behind its back; ``change`` gets each row."""
    for uri in dataset.shard_uris:
        table = pq.read_table(uri)
        rows = table.to_pylist()
        for row in rows:
            change(row)
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), uri)


def test_good_recordings_are_all_accepted(recordings, store):
    found = validate(dataset_of(recordings, store), TASK, CONFIG, store)
    assert (found.utterances, found.accepted, found.quarantined) == (8, 8, 0)
    assert found.labels == {"angry": 4, "sad": 4}
    assert found.corpora == {"folder": 8}
    assert sorted(found.speakers.values()) == [4, 4]
    assert set(found.checks.values()) == {0}
    assert len(accepted_source_ids(found.uri)) == 8


def test_each_defect_is_quarantined_with_its_own_reason(recordings, store):
    write(recordings, "angry/anna_silent.wav", tone(amplitude=1e-4))
    write(recordings, "angry/anna_zeros.wav", np.zeros(RATE))
    write(recordings, "angry/anna_loud.wav", np.clip(tone(amplitude=3.0, hertz=190), -1, 1))
    write(recordings, "angry/anna_short.wav", tone(seconds=0.3))
    write(recordings, "angry/anna_rate.wav", tone(rate=17_000), 17_000)
    write(recordings, "bored/anna_label.wav", tone(hertz=210))
    shutil.copy(recordings / "angry/anna_1.wav", recordings / "angry/zoe_again.wav")
    found = validate(dataset_of(recordings, store), TASK, LAX, store)
    assert reasons(found) == {
        "folder:angry/anna_silent.wav": ("silent",),
        "folder:angry/anna_zeros.wav": ("silent",),
        "folder:angry/anna_loud.wav": ("clipped",),
        "folder:angry/anna_short.wav": ("duration_too_short",),
        "folder:angry/anna_rate.wav": ("sample_rate_unknown",),
        "folder:bored/anna_label.wav": ("label_unknown",),
        "folder:angry/zoe_again.wav": ("duplicate",),
    }
    assert found.checks == {
        "duration": 1,
        "sample_rate": 1,
        "size": 0,
        "label": 1,
        "decodes": 0,
        "loudness": 2,
        "clipping": 1,
        "duplicate": 1,
    }


def test_every_reason_against_a_recording_is_listed(recordings, store):
    write(recordings, "bored/anna_bad.wav", np.zeros(1000))
    config = LAX.model_copy(update={"min_bytes": 5000})
    found = validate(dataset_of(recordings, store), TASK, config, store)
    assert set(reasons(found)["folder:bored/anna_bad.wav"]) == {
        "duration_too_short",
        "source_too_small",
        "label_unknown",
        "silent",
    }
    row = next(row for row in read_rows(found.uri) if row.source_id == "folder:bored/anna_bad.wav")
    assert len(row.details) == len(row.reasons)


def test_a_label_that_the_task_leaves_out_is_accepted(recordings, store):
    write(recordings, "calm/anna_9.wav", tone(hertz=99))
    write(recordings, "cross/anna_9.wav", tone(hertz=98))
    found = validate(dataset_of(recordings, store), TASK, CONFIG, store)
    assert found.quarantined == 0
    assert found.outside_task == 1
    assert found.labels == {"angry": 5, "sad": 4}


def test_the_label_may_be_the_language(recordings, store):
    source = CorpusSource(name="folder", path=str(recordings), options={"label_is": "language"})
    dataset = ingest(DataConfig(corpora=[source]), store)[0]
    task = TASK.model_copy(update={"label_column": "language"})
    assert validate(dataset, task, CONFIG, store).accepted == 8
    assert validate(dataset, TASK, LAX, store).reasons == {"label_missing": 8}


def test_of_equal_recordings_the_first_by_name_stays(recordings, store):
    for name in ("sad/aa_copy.wav", "sad/zz_copy.wav"):
        shutil.copy(recordings / "sad/anna_1.wav", recordings / name)
    found = validate(dataset_of(recordings, store), TASK, LAX, store)
    assert reasons(found) == {"folder:sad/anna_1.wav": ("duplicate",), "folder:sad/zz_copy.wav": ("duplicate",)}
    assert "folder:sad/aa_copy.wav" in accepted_source_ids(found.uri)


def test_a_copy_takes_the_place_of_a_first_that_is_refused(recordings, store):
    write(recordings, "aargh/anna_7.wav", tone(hertz=77))
    write(recordings, "angry/anna_7.wav", tone(hertz=77))
    found = validate(dataset_of(recordings, store), TASK, LAX, store)
    assert reasons(found) == {"folder:aargh/anna_7.wav": ("label_unknown", "duplicate")}
    row = next(row for row in read_rows(found.uri) if not row.accepted)
    assert "same audio as folder:angry/anna_7.wav, with another raw label" in row.details


def test_stored_audio_that_changed_is_found(recordings, store):
    dataset = dataset_of(recordings, store)
    target = "folder:angry/anna_1.wav"
    other = pq.read_table(dataset.shard_uris[0]).to_pylist()[-1]["audio"]["bytes"]

    def swap(row):
        if row["source_id"] == target:
            row["audio"]["bytes"] = other

    rewrite(dataset, swap)
    assert reasons(validate(dataset, TASK, LAX, store)) == {target: ("content_changed",)}


def test_stored_audio_that_does_not_decode_is_found_and_the_rest_still_read(recordings, store):
    dataset = dataset_of(recordings, store)
    broken = {"folder:angry/anna_1.wav", "folder:sad/anna_3.wav"}

    def damage(row):
        if row["source_id"] in broken:
            row["audio"]["bytes"] = b"this is no audio at all"

    rewrite(dataset, damage)
    found = validate(dataset, TASK, LAX, store)
    assert reasons(found) == dict.fromkeys(broken, ("undecodable",))
    levels = [row.rms_dbfs for row in read_rows(found.uri)]
    assert sum(level is None for level in levels) == 2


def test_a_damaged_shard_is_one_clear_error(recordings, store):
    dataset = dataset_of(recordings, store)
    with open(dataset.shard_uris[0], "r+b") as file:
        file.truncate(1000)
    with pytest.raises(StorageError, match=r"part-00000\.parquet: damaged shard"):
        validate(dataset, TASK, CONFIG, store)
    assert not (Path(store) / "validations").exists()
    assert not list((Path(store) / "tmp").iterdir())


def test_too_much_quarantined_fails_in_one_line_and_leaves_the_report(recordings, store):
    write(recordings, "angry/anna_silent.wav", np.zeros(RATE))
    dataset = dataset_of(recordings, store)
    with pytest.raises(ValidationError) as caught:
        validate(dataset, TASK, CONFIG, store)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("1 of 9 recordings are quarantined (11.1%; validation.max_quarantined_share allows 5.0%)")
    assert "folder:angry/anna_silent.wav: silent (digital silence" in line
    report = line.partition("reasons: ")[2].partition(";")[0]
    with open(report, encoding="utf-8") as file:
        assert "folder:angry/anna_silent.wav" in file.read()
    with pytest.raises(ValidationError) as again:  # the answer is reused, and so is the refusal
        validate(dataset, TASK, CONFIG, store)
    assert str(again.value) == line


@pytest.mark.parametrize(("limit", "passes"), [(1 / 9, True), (0.11, False)])
def test_the_limit_itself_is_allowed(recordings, store, limit, passes):
    write(recordings, "bored/anna_1.wav", tone(hertz=444))
    config = CONFIG.model_copy(update={"max_quarantined_share": limit})
    dataset = dataset_of(recordings, store)
    if passes:
        assert validate(dataset, TASK, config, store).quarantined == 1
    else:
        with pytest.raises(ValidationError, match="label_unknown"):
            validate(dataset, TASK, config, store)


def test_the_same_question_is_answered_once(recordings, store, monkeypatch):
    dataset = dataset_of(recordings, store)
    first = validate(dataset, TASK, CONFIG, store)
    assert not first.reused
    monkeypatch.setattr("kubevox.data.validation.read_audio", lambda *_: pytest.fail("the audio was read again"))
    second = validate(dataset, TASK, CONFIG, store)
    assert second == dataclasses.replace(first, reused=True)
    assert load_validation(first.uri) == second


def test_another_limit_or_another_map_is_another_question(recordings, store):
    dataset = dataset_of(recordings, store)
    uris = {
        validate(dataset, task, config, store).uri
        for task in (TASK, TASK.model_copy(update={"map": {}}))
        for config in (CONFIG, CONFIG.model_copy(update={"silence_dbfs": -60.0}))
    }
    assert len(uris) == 4


def test_a_reused_validation_needs_no_plots(recordings, store):
    dataset = dataset_of(recordings, store)
    validate(dataset, TASK, CONFIG, store)
    code = (
        "import sys\n"
        "from kubevox.config import TaskConfig, ValidateConfig\n"
        "from kubevox.data.dataset import load_dataset\n"
        "from kubevox.data.validation import validate\n"
        "task, config = TaskConfig.from_json(sys.argv[2]), ValidateConfig.from_json(sys.argv[3])\n"
        "assert validate(load_dataset(sys.argv[1]), task, config, sys.argv[4]).reused\n"
        "print([name for name in ('matplotlib', 'pandas', 'jinja2') if name in sys.modules])\n"
    )
    arguments = [dataset.uri, TASK.to_json(), CONFIG.to_json(), store]
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_the_report_tells_and_escapes(recordings, store):
    write(recordings, "an <i>odd</i> one/anna_<script>.wav", tone(hertz=66))
    (recordings / "sad/anna_text.wav").write_text("not audio")
    found = validate(dataset_of(recordings, store), TASK, LAX, store)
    with open(found.report_uri, encoding="utf-8") as file:
        page = file.read()
    assert "folder:an &lt;i&gt;odd&lt;/i&gt; one/anna_&lt;script&gt;.wav" in page
    assert page.count("<script>") == 1
    assert "folder:sad/anna_text.wav" in page
    assert "not_audio" in page
    assert page.count("<svg") == 4
    assert SYNTHETIC_NOTICE not in page
    for check in CHECKS:
        assert check.expectation.replace("'", "&#39;") in page


def test_a_report_on_synthetic_data_begins_with_the_notice(recordings, store):
    dataset = dataclasses.replace(dataset_of(recordings, store), synthetic=True)
    found = validate(dataset, TASK, CONFIG, store)
    with open(found.report_uri, encoding="utf-8") as file:
        body = file.read().partition("<body>")[2]
    assert body.strip().startswith(f'<p class="banner" role="note">{SYNTHETIC_NOTICE}</p>')
    with open(f"{found.uri}/validation.json", encoding="utf-8") as file:
        assert json.load(file)["notice"] == SYNTHETIC_NOTICE


def test_recordings_without_speakers_are_reported_as_such(recordings, store):
    source = CorpusSource(name="folder", path=str(recordings), options={"speaker": None})
    found = validate(ingest(DataConfig(corpora=[source]), store)[0], TASK, CONFIG, store)
    assert found.speakers == {}
    with open(found.report_uri, encoding="utf-8") as file:
        assert "8 accepted recordings name no speaker" in file.read()


def test_a_hundred_speakers_are_drawn_too(tmp_path, store):
    for i in range(100):
        write(
            tmp_path / "many",
            f"{'sad' if i % 2 else 'angry'}/s{i}_1.wav",
            tone(seconds=0.8, hertz=100 + i, rate=8000),
            8000,
        )
    found = validate(dataset_of(tmp_path / "many", store), TASK, CONFIG, store)
    assert len(found.speakers) == 100
    with open(found.report_uri, encoding="utf-8") as file:
        assert "100 speakers, 1 to 1 accepted recordings each" in file.read()


def test_where_nothing_decodes_there_is_still_a_report(recordings, store):
    dataset = dataset_of(recordings, store)
    rewrite(dataset, lambda row: row.update(audio={"bytes": b"?", "path": "x"}, duration_s=None, speaker=None))
    found = validate(dataset, TASK, LAX, store)
    assert found.accepted == 0
    assert found.reasons == {"duration_missing": 8, "undecodable": 8}


def an_utterance(**changes):
    base = Utterance(
        id="0" * 64,
        corpus="folder",
        speaker="folder:a",
        sex=None,
        raw_label="sad",
        intensity=None,
        language=None,
        text=None,
        duration_s=1.0,
        sample_rate=RATE,
        source_id="folder:sad/a_1.wav",
        source_bytes=32_000,
        source_sample_rate=RATE,
    )
    return dataclasses.replace(base, **changes)


GOOD = dataclasses.replace(measure(canonical(tone(), RATE)), id="0" * 64)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"duration_s": None}, ["duration_missing"]),
        ({"duration_s": float("nan")}, ["duration_not_numeric"]),
        ({"duration_s": "long"}, ["duration_not_numeric"]),
        ({"duration_s": 61.0}, ["duration_too_long", "duration_wrong"]),
        ({"duration_s": 1.2}, ["duration_wrong"]),
        ({"sample_rate": None}, ["sample_rate_missing"]),
        ({"source_sample_rate": 11_111}, ["sample_rate_unknown"]),
        ({"source_bytes": None}, ["size_missing"]),
        ({"source_bytes": 10}, ["source_too_small"]),
        ({"source_bytes": 10**9}, ["source_too_large"]),
        ({"raw_label": None}, ["label_missing"]),
        ({"raw_label": "bored"}, ["label_unknown"]),
        ({"raw_label": "calm"}, []),
        ({"id": "1" * 64}, ["content_changed"]),
    ],
)
def test_metadata_expectations(changes, expected):
    findings, _ = examine(an_utterance(**changes), GOOD, TASK, CONFIG)
    assert [finding.reason for finding in findings] == expected


def test_every_reason_belongs_to_exactly_one_check():
    listed = [reason for check in CHECKS for reason in check.reasons]
    assert len(listed) == len(set(listed))


def test_level_of_a_full_scale_sine_is_minus_three():
    assert measure(canonical(tone(amplitude=1.0, hertz=100), RATE)).rms_dbfs == pytest.approx(-3.01, abs=0.01)


def test_a_constant_offset_is_silence():
    assert measure(canonical(np.full(RATE, 0.5), RATE)).rms_dbfs == -140


def test_a_normalised_recording_is_not_clipped_and_an_overdriven_one_is():
    assert measure(canonical(tone(amplitude=1.0, hertz=440), RATE)).clipped_share < 0.01
    sixteen_bit = np.round(np.clip(tone(amplitude=2.0), -1, 32767 / 32768) * 32768) / 32768
    assert measure(canonical(sixteen_bit, RATE)).clipped_share > 0.5


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


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12), st.randoms())
@settings(max_examples=60)
def test_one_of_each_recording_survives_and_it_is_a_sound_one_where_there_is_one(copies, random):
    utterances = [an_utterance(id=name, source_id=f"folder:{i:02d}") for i, (name, _) in enumerate(copies)]
    rows = list(zip(utterances, [fine for _, fine in copies], strict=True))
    random.shuffle(rows)
    found = duplicates([row[0] for row in rows], [row[1] for row in rows])
    for name in {name for name, _ in copies}:
        same = [(u, fine) for u, fine in rows if u.id == name]
        kept = [(u, fine) for u, fine in same if u.source_id not in found]
        assert len(kept) == 1
        assert kept[0][1] == any(fine for _, fine in same)
        assert kept[0][0].source_id == min(u.source_id for u, fine in same if fine == kept[0][1])
