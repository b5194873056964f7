"""Validation of real dataset versions, made from generated recordings."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import CorpusSource, DataConfig, TaskConfig, ValidateConfig
from kubevox.config.validation import Gates
from kubevox.data.audio import canonical
from kubevox.data.dataset import Shard, Utterance, ingest
from kubevox.data.validation import accepted_source_ids, load_validation, read_rows, validate
from kubevox.data.validation.checks import CHECKS, REASONS, divide, duplicates
from kubevox.data.validation.quality import measure
from kubevox.data.validation.tables import examine, labels_of
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
    return ingest(DataConfig(corpora=[source], max_rejected_share=0.9, publish_names=True, **config), store)[0]


def reasons(validation):
    return {row.source_id: row.reasons for row in read_rows(validation.uri) if not row.accepted}


def rewrite(dataset, change):
    """The dataset with other rows, in shards named by what they hold; ``change`` gets each row."""
    shards = []
    for shard, uri in zip(dataset.shards, dataset.shard_uris, strict=True):
        table = pq.read_table(uri)
        rows = table.to_pylist()
        for row in rows:
            change(row)
        path = Path(uri).with_name("changed")
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        path.rename(path.with_name(f"{digest}.parquet"))
        shards.append(Shard(digest, len(rows), len(content), shard.batch))
    return dataclasses.replace(dataset, shards=tuple(shards))


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
    assert {name: count for name, count in found.checks.items() if count} == {
        "duration": 1,
        "sample_rate": 1,
        "label": 1,
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

    assert reasons(validate(rewrite(dataset, swap), TASK, LAX, store)) == {target: ("content_changed",)}


def test_stored_audio_that_does_not_decode_is_found_and_the_rest_still_read(recordings, store):
    dataset = dataset_of(recordings, store)
    broken = {"folder:angry/anna_1.wav", "folder:sad/anna_3.wav"}

    def damage(row):
        if row["source_id"] in broken:
            row["audio"]["bytes"] = b"this is no audio at all"

    found = validate(rewrite(dataset, damage), TASK, LAX, store)
    assert reasons(found) == dict.fromkeys(broken, ("undecodable",))
    levels = [row.rms_dbfs for row in read_rows(found.uri)]
    assert sum(level is None for level in levels) == 2


def test_a_damaged_shard_is_one_clear_error(recordings, store):
    dataset = dataset_of(recordings, store)
    with open(dataset.shard_uris[0], "r+b") as file:
        file.truncate(1000)
    with pytest.raises(StorageError, match=r"shards/[0-9a-f]{64}\.parquet: damaged"):
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


def test_the_limit_itself_is_allowed_where_its_product_is_less(tmp_path, store):
    assert 15 / 22 * 22 < 15
    for i in range(22):
        write(tmp_path / "all", f"{'sad' if i < 7 else 'bored'}/anna_{i}.wav", tone(hertz=200 + i))
    config = CONFIG.model_copy(update={"max_quarantined_share": 15 / 22})
    found = validate(dataset_of(tmp_path / "all", store), TASK, config, store)
    assert (found.accepted, found.quarantined) == (7, 15)
    assert json.loads(Path(found.uri, "validation.json").read_text())["passed"]


def test_the_same_question_is_answered_once(recordings, store, monkeypatch):
    dataset = dataset_of(recordings, store)
    first = validate(dataset, TASK, CONFIG, store)
    assert not first.reused
    monkeypatch.setattr("kubevox.data.validation.read_encoded", lambda *_: pytest.fail("the audio was read again"))
    second = validate(dataset, TASK, CONFIG, store)
    assert second == dataclasses.replace(first, reused=True)
    assert load_validation(first.uri) == second


def test_another_limit_or_another_map_is_another_question(recordings, store):
    dataset = dataset_of(recordings, store)
    uris = {
        validate(dataset, task, config, store).uri
        for task, config in (
            (TASK, CONFIG),
            (TASK.model_copy(update={"map": {}}), CONFIG),
            (TASK, CONFIG.model_copy(update={"gates": Gates(silent="warn")})),
        )
    }
    assert len(uris) == 3


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
        "print([name for name in ('matplotlib', 'pandas', 'pandera', 'jinja2') if name in sys.modules])\n"
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
    assert page.count("<svg") == 8
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
        assert "8 accepted recordings name no speaker (folder)" in file.read()
    assert [remark["figures"] for remark in found.remarks if remark["kind"] == "speakers_unknown"] == [
        {"corpora": {"folder": 8}}
    ]


def test_a_hundred_speakers_are_drawn_too(tmp_path, store):
    for i in range(100):
        write(
            tmp_path / "many",
            f"{'sad' if i % 2 else 'angry'}/s{i}_1.wav",
            tone(seconds=1.0, hertz=100 + i, rate=8000),
            8000,
        )
    found = validate(dataset_of(tmp_path / "many", store), TASK, CONFIG, store)
    assert len(found.speakers) == 100
    with open(found.report_uri, encoding="utf-8") as file:
        assert "100 speakers, 1 to 1 accepted recordings each" in file.read()


def test_where_nothing_decodes_there_is_still_a_report(recordings, store):
    dataset = dataset_of(recordings, store)
    dataset = rewrite(
        dataset, lambda row: row.update(audio={"bytes": b"?", "path": "x"}, duration_s=None, speaker=None)
    )
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
        partition=None,
        duration_s=1.0,
        sample_rate=RATE,
        source_id="folder:sad/a_1.wav",
        source_bytes=32_000,
        source_sample_rate=RATE,
    )
    return dataclasses.replace(base, **changes)


GOOD = dataclasses.replace(measure(canonical(tone(), RATE)), id="0" * 64, snr_db=30.0, bandwidth_hz=8_000.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"duration_s": None}, ["duration_missing"]),
        ({"duration_s": float("nan")}, ["duration_not_numeric"]),
        ({"duration_s": float("inf")}, ["duration_not_numeric"]),
        ({"duration_s": "long"}, ["duration_not_numeric"]),
        ({"duration_s": 61.0}, ["duration_too_long", "duration_wrong"]),
        ({"duration_s": 1.2}, ["duration_wrong"]),
        ({"sample_rate": None}, ["sample_rate_missing"]),
        ({"source_sample_rate": 11_111}, ["sample_rate_unknown"]),
        ({"source_bytes": None}, ["size_missing"]),
        ({"source_bytes": 12_000.5}, ["size_not_integer"]),
        ({"source_bytes": 10}, ["source_too_small"]),
        ({"source_bytes": 10**9}, ["source_too_large"]),
        ({"source_id": None}, ["name_missing"]),
        ({"raw_label": None}, ["label_missing"]),
        ({"raw_label": "bored"}, ["label_unknown"]),
        ({"raw_label": "calm"}, []),
        ({"id": "1" * 64}, ["content_changed"]),
    ],
)
def test_metadata_expectations(changes, expected):
    [findings] = examine([an_utterance(**changes)], [GOOD], TASK, CONFIG)
    assert [finding.reason for finding in findings] == expected
    assert all(finding.detail for finding in findings)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rms_dbfs": -75.0}, "silent"),
        ({"clipped_share": 0.2}, "clipped"),
        ({"snr_db": 3.0}, "low_snr"),
        ({"silence_ratio": 0.95}, "mostly_silent"),
        ({"dc_offset": 0.05}, "dc_offset"),
        ({"bandwidth_hz": 3400.0}, "narrow_band"),
        ({"speech_ratio": 0.0}, "no_speech"),
        ({"stoi": 0.3}, "low_stoi"),
        ({"pesq": 1.05}, "low_pesq"),
        ({"si_sdr_db": -4.0}, "low_si_sdr"),
    ],
)
def test_each_measure_has_a_limit(changes, reason):
    [findings] = examine([an_utterance()], [dataclasses.replace(GOOD, **changes)], TASK, CONFIG)
    assert [finding.reason for finding in findings] == [reason]


def test_rows_that_share_a_name_or_everything_are_all_named():
    rows = [an_utterance(), an_utterance(), an_utterance(raw_label="angry"), an_utterance(source_id="folder:b")]
    found = examine(rows, [GOOD] * 4, TASK, CONFIG)
    assert [[finding.reason for finding in findings] for findings in found] == [
        ["name_not_unique", "row_repeated"],
        ["name_not_unique", "row_repeated"],
        ["name_not_unique"],
        [],
    ]


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "duration_s": st.sampled_from([1.0, None, float("nan"), 0.1, 99.0, "x"]),
                "sample_rate": st.sampled_from([RATE, None, 11_111]),
                "source_bytes": st.sampled_from([32_000, None, 5, 10**9, 1.5]),
                "raw_label": st.sampled_from(["sad", "calm", "bored", None]),
            }
        ),
        max_size=8,
    )
)
@settings(max_examples=12)
def test_a_row_is_judged_alike_alone_and_among_others(changes):
    rows = [an_utterance(source_id=f"folder:{i}", **change) for i, change in enumerate(changes)]
    together = examine(rows, [GOOD] * len(rows), TASK, CONFIG)
    assert together == [examine([row], [GOOD], TASK, CONFIG)[0] for row in rows]
    assert labels_of(rows, TASK) == ["sad" if row.raw_label == "sad" else None for row in rows]


@pytest.mark.parametrize("reason", Gates.model_fields)
def test_a_gate_decides_whether_a_reason_quarantines_warns_or_is_not_looked_for(reason):
    changes = {
        "duration_too_short": ({"duration_s": 0.1}, {"duration_s": 0.1}),
        "duration_too_long": ({"duration_s": 99.0}, {"duration_s": 99.0}),
        "sample_rate_unknown": ({"sample_rate": 11_111}, {}),
        "source_too_small": ({"source_bytes": 5}, {}),
        "source_too_large": ({"source_bytes": 10**9}, {}),
        "silent": ({}, {"rms_dbfs": -90.0}),
        "clipped": ({}, {"clipped_share": 0.5}),
        "low_snr": ({}, {"snr_db": 0.0}),
        "mostly_silent": ({}, {"silence_ratio": 1.0}),
        "dc_offset": ({}, {"dc_offset": 0.5}),
        "narrow_band": ({}, {"bandwidth_hz": 3000.0}),
        "no_speech": ({}, {"speech_ratio": 0.0}),
        "low_stoi": ({}, {"stoi": 0.1}),
        "low_pesq": ({}, {"pesq": 1.0}),
        "low_si_sdr": ({}, {"si_sdr_db": -9.0}),
        "duplicate": ({}, {}),
    }[reason]
    rows = [an_utterance(source_id="folder:a"), an_utterance(source_id="folder:b", **changes[0])]
    measured = [GOOD, dataclasses.replace(GOOD, **changes[1])]
    for verdict, expected in {"quarantine": ([reason], []), "warn": ([], [reason]), "ignore": ([], [])}.items():
        config = CONFIG.model_copy(update={"gates": Gates(duplicate="ignore").model_copy(update={reason: verdict})})
        findings = [*examine(rows, measured, TASK, config)[1]]
        findings += [duplicates(rows, [True, True])[1]]
        refused, warned = divide(findings, config)
        assert ([f.reason for f in refused], [f.reason for f in warned]) == expected


def test_what_no_gate_lists_always_quarantines():
    fixed = set(REASONS) - set(Gates.model_fields)
    assert fixed >= {"undecodable", "content_changed", "label_unknown", "label_missing", "name_not_unique"}
    assert set(Gates.model_fields) <= set(REASONS)


def test_a_warned_recording_is_accepted_and_an_ignored_one_is_not_mentioned(recordings, store):
    write(recordings, "angry/anna_loud.wav", np.clip(tone(amplitude=3.0, hertz=190), -1, 1))
    dataset = dataset_of(recordings, store)
    for verdict, accepted, warned in (("quarantine", 8, 0), ("warn", 9, 1), ("ignore", 9, 0)):
        config = LAX.model_copy(update={"gates": Gates(clipped=verdict)})
        found = validate(dataset, TASK, config, store)
        assert (found.accepted, found.warnings.get("clipped", 0)) == (accepted, warned)
        row = next(row for row in read_rows(found.uri) if "loud" in row.source_id)
        assert ("clipped" in row.reasons, "clipped" in row.warnings) == (verdict == "quarantine", verdict == "warn")
        assert (row.source_id in accepted_source_ids(found.uri)) == row.accepted


def test_a_copy_that_is_only_warned_of_is_accepted_too(recordings, store):
    shutil.copy(recordings / "sad/anna_1.wav", recordings / "sad/zz_copy.wav")
    config = CONFIG.model_copy(update={"gates": Gates(duplicate="warn")})
    found = validate(dataset_of(recordings, store), TASK, config, store)
    assert (found.accepted, found.quarantined, found.warnings["duplicate"]) == (9, 0, 1)


def test_every_reason_belongs_to_exactly_one_check():
    listed = [reason for check in CHECKS for reason in check.reasons]
    assert len(listed) == len(set(listed))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12), st.randoms())
@settings(max_examples=60)
def test_one_of_each_recording_survives_and_it_is_a_sound_one_where_there_is_one(copies, random):
    utterances = [an_utterance(id=name, source_id=f"folder:{i:02d}") for i, (name, _) in enumerate(copies)]
    rows = list(zip(utterances, [fine for _, fine in copies], strict=True))
    random.shuffle(rows)
    found = duplicates([row[0] for row in rows], [row[1] for row in rows])
    for name in {name for name, _ in copies}:
        same = [(i, u, fine) for i, (u, fine) in enumerate(rows) if u.id == name]
        kept = [(u, fine) for i, u, fine in same if i not in found]
        assert len(kept) == 1
        assert kept[0][1] == any(fine for _, _, fine in same)
        assert kept[0][0] == next(u for _, u, fine in same if fine == kept[0][1])  # the first in the dataset's order


@given(st.lists(st.sampled_from(["good", "copy", "silent", "short", "label", "text", "empty"]), max_size=7))
@settings(max_examples=5)
def test_what_was_found_is_accepted_quarantined_or_failed(kinds):
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "recordings"
        write(folder, "sad/anna_0.wav", tone(hertz=90))
        for i, kind in enumerate(kinds):
            name = f"{'bored' if kind == 'label' else 'sad'}/anna_{i + 1}.wav"
            if kind in ("text", "empty"):
                (folder / name).write_text("no audio" if kind == "text" else "")
            else:
                samples = {"copy": tone(hertz=90), "silent": np.zeros(RATE), "short": tone(0.2, hertz=100 + i)}
                write(folder, name, samples.get(kind, tone(hertz=200 + 10 * i)))
        dataset = dataset_of(folder, f"{root}/store")
        found = validate(dataset, TASK, LAX, f"{root}/store")
    assert found.found == 1 + len(kinds) == found.accepted + found.quarantined + found.rejects
    assert found.rejects == kinds.count("text") + kinds.count("empty")
    # Of several silent recordings all are silent, whether or not they are also copies of each other.
    assert found.quarantined == len(kinds) - found.rejects - kinds.count("good")


def test_a_version_of_which_rows_are_missing_is_refused(recordings, store):
    dataset = dataset_of(recordings, store)
    counts = ({**dataset.corpora[0], "found": 9},)
    with pytest.raises(StorageError, match="9 recordings were found, and 8 accepted, 0 quarantined and 0 failed"):
        validate(dataclasses.replace(dataset, corpora=counts), TASK, CONFIG, store)
    assert not (Path(store) / "validations").exists()


def test_the_number_of_workers_changes_nothing(recordings, store, monkeypatch):
    write(recordings, "angry/anna_silent.wav", np.zeros(RATE))
    dataset = dataset_of(recordings, store)
    answers = []
    for workers in (1, 3):
        monkeypatch.setattr("kubevox.processes.cores", lambda workers=workers: workers)
        found = validate(dataset, TASK, LAX, store)
        answers.append((Path(found.uri) / "rows.parquet").read_bytes())
        assert not found.reused
        shutil.rmtree(found.uri)
    assert answers[0] == answers[1]


def test_a_row_tells_its_place_in_the_store(recordings, store):
    found = validate(dataset_of(recordings, store), TASK, CONFIG, store)
    for row in read_rows(found.uri):
        assert pq.read_table(f"{store}/{row.shard}")["source_id"][row.row].as_py() == row.source_id
