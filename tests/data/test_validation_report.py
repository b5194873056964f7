"""What is told of a dataset as a whole, and the page that tells it."""

import dataclasses
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kubevox.config import CorpusSource, DataConfig, TaskConfig, ValidateConfig, load_config
from kubevox.config.validation import Gates
from kubevox.data.dataset import DatasetVersion, Utterance, ingest
from kubevox.data.validation import MEASURES, Row, load_validation, read_rows, validate
from kubevox.data.validation.quality import Measured
from kubevox.data.validation.remarks import remarks
from kubevox.data.validation.tables import examine
from kubevox.errors import ConfigError

RATE = 16_000
TASK = TaskConfig(name="mood", labels=["angry", "sad"])
CONFIG = ValidateConfig(max_quarantined_share=1.0)


def voice(seed, seconds=1.0):
    time = np.arange(round(seconds * RATE)) / RATE
    chance = np.random.default_rng(seed)
    return 0.1 * np.clip(np.sin(2 * np.pi * 3 * time), 0, None) * chance.standard_normal(len(time))


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    for label in TASK.labels:
        (root / "corpus" / label).mkdir(parents=True)
        for i in range(3):
            soundfile.write(root / "corpus" / label / f"p{i}_0.wav", voice(10 * len(label) + i), RATE)
    soundfile.write(root / "corpus" / "sad" / "p0_silent.wav", np.zeros(RATE), RATE)
    soundfile.write(root / "corpus" / "sad" / "p1_offset.wav", voice(7) + 0.2, RATE)
    soundfile.write(root / "corpus" / "sad" / "p2_copy.wav", voice(10 * len("sad")), RATE)
    (root / "corpus" / "sad" / "p2_text.wav").write_text("no audio")
    source = CorpusSource(name="folder", path=str(root / "corpus"))
    data = DataConfig(corpora=[source], max_rejected_share=0.5, publish_names=True)
    return ingest(data, str(root / "store"))[0]


@pytest.fixture(scope="module")
def found(version):
    return validate(version, TASK, CONFIG, version.store)


@pytest.fixture(scope="module")
def page(found):
    return Path(found.report_uri).read_text(encoding="utf-8")


def section(page, title):
    """A section's text, from its heading to the next."""
    return page[page.index(f"<h2>{title}") :].partition("</section>")[0]


def test_the_sum_is_shown(page, found):
    assert (found.found, found.accepted, found.quarantined, found.rejects) == (10, 7, 2, 1)
    assert "10 found = 7 accepted + 2 quarantined + 1 failed." in page


def test_each_quarantined_recording_is_linked_to_its_place_in_the_store(page, found):
    table = section(page, "Quarantined (2)")
    assert 'type="search"' in table
    links = re.findall(r'<a href="([^"#]+)#row=(\d+)">', table)
    rows = [row for row in read_rows(found.uri) if not row.accepted]
    assert sorted(links) == sorted((f"../../{row.shard}", str(row.row)) for row in rows)
    assert all((Path(found.uri) / href).resolve().is_file() for href, _ in links)


def test_warnings_are_a_table_of_their_own(page, found):
    assert found.warned == 1
    table = section(page, "Warnings (1)")
    assert "folder:sad/p1_offset.wav" in table
    assert re.search(r"dc_offset: (20.\d|19.\d)% of full scale, at most 1.0%", table)
    assert "folder:sad/p1_offset.wav" not in section(page, "Quarantined (2)")
    assert "1 warned of" in section(page, "Checks")


def test_copies_are_shown_with_what_was_kept(page):
    table = section(page, "Duplicates (1)")
    assert "folder:sad/p0_0.wav" in table
    assert "folder:sad/p2_copy.wav" in table


def test_what_was_not_asked_is_not_said_to_pass(page):
    checks = section(page, "Checks")
    for name in ("speech", "quality"):
        assert "not asked" in checks[checks.index(f"<td>{name}</td>") :].partition("</tr>")[0]
    assert "Voice activity was not measured" in section(page, "Signal quality")


def test_nobody_is_heard_in_the_report_unless_asked(page, version):
    assert "<audio" not in page
    assert "media-src" not in page
    # Beside that, a reason that is not looked for.
    config = CONFIG.model_copy(update={"embed_audio": 2, "gates": Gates(narrow_band="ignore")})
    heard = Path(validate(version, TASK, config, version.store).report_uri).read_text(encoding="utf-8")
    assert heard.count("<audio") == 2
    assert "img-src data:; media-src data:" in heard
    checks = section(heard, "Checks")
    assert "not asked" in checks[checks.index("<td>bandwidth</td>") :].partition("</tr>")[0]
    assert "https://" not in re.sub(r"https://download\.pytorch\.org\S*", "", heard.partition("<body>")[0])


def test_the_figures_stand_beside_the_page(found, version):
    head = json.loads((Path(found.uri) / "validation.json").read_text())
    assert {"found", "accepted", "quarantined", "rejects", "warned", "remarks", "warnings", "measures"} <= set(head)
    measures = head["measures"]["folder"]
    assert set(measures) == {"duration_s", *MEASURES} - {"speech_ratio", "stoi", "pesq", "si_sdr_db"}
    assert measures["duration_s"] == {
        "recordings": 9, "min": 1.0, "p5": 1.0, "median": 1.0, "p95": 1.0, "max": 1.0
    }  # fmt: skip
    assert measures["dc_offset"]["max"] == pytest.approx(0.2, abs=0.01)
    assert measures["snr_db"]["recordings"] == 8  # not of silence
    assert load_validation(found.uri) == dataclasses.replace(found, reused=True)


def a_row(i=0, **changes):
    base = Row(
        **{
            **dict.fromkeys((field.name for field in dataclasses.fields(Row)), None),
            **{"id": f"{i:064d}", "source_id": f"folder:{i}", "accepted": True, "corpus": "folder", "label": "sad"},
            **{"speaker": f"folder:s{i}", "reasons": (), "details": (), "warnings": (), "warning_details": ()},
            **{"duration_s": 1.0 + i, "shard": "shards/x.parquet", "row": i},
        }
    )
    return dataclasses.replace(base, **changes)


def an_utterance(i=0, **changes):
    names = [field.name for field in dataclasses.fields(Utterance)]
    values = {**dict.fromkeys(names), "id": str(i), "duration_s": 1.0 + i, "source_bytes": 40_000 + i, **changes}
    return Utterance(**values)


def said(rows, *, utterances=(), corpora=(), config=CONFIG, task=TASK):
    version = DatasetVersion("", "", (), len(rows), 0, 0.0, False, tuple(corpora), (), None, {})
    return {remark.kind: remark for remark in remarks(rows, utterances, version, task, config)}


def both_labels(count, **changes):
    return [a_row(i, label=TASK.labels[i % 2], **changes) for i in range(count)]


def test_a_dataset_without_fault_is_not_remarked_on():
    rows = [a_row(i, label=TASK.labels[i % 2], sex=("female", "male")[i // 2 % 2]) for i in range(8)]
    assert said(rows, utterances=[an_utterance(i) for i in range(8)]) == {}


@pytest.mark.parametrize(("sad", "remarked"), [(6, False), (7, True)])
def test_labels_further_apart_than_the_limit_are_remarked_on(sad, remarked):
    rows = [a_row(i, label="sad" if i < sad else "angry") for i in range(sad + 2)]
    found = said(rows)
    assert ("label_imbalance" in found) == remarked
    if remarked:
        assert found["label_imbalance"].figures == {"counts": {"angry": 2, "sad": 7}, "ratio": 3.5}
        assert "validation.max_label_ratio is 3" in found["label_imbalance"].message


def test_quarantined_recordings_do_not_count_for_the_balance():
    rows = [*both_labels(4), *(a_row(9 + i, accepted=False) for i in range(40))]
    assert "label_imbalance" not in said(rows)


def test_a_label_that_is_absent_or_of_one_corpus_is_remarked_on():
    assert said([a_row(0)])["label_absent"].figures == {"labels": ["angry"]}
    rows = [*both_labels(4), a_row(7, corpus="emodb")]
    assert said(rows)["label_of_one_corpus"].figures == {"labels": {"angry": "folder"}}
    assert "label_of_one_corpus" not in said(both_labels(4))


def test_sexes_out_of_balance_are_remarked_on_overall_or_in_a_label():
    most = said([*both_labels(9, sex="male"), a_row(9, sex="female")])
    assert most["sex_imbalance"].figures == {"sexes": {"female": 1, "male": 9}}
    rows = [a_row(i, label=TASK.labels[i % 2], sex=("female", "male")[i % 2]) for i in range(8)]
    split = said(rows)
    assert "sex_imbalance" not in split
    assert split["sex_imbalance_in_label"].figures["labels"] == {"angry": {"female": 4}, "sad": {"male": 4}}
    assert not {"sex_imbalance", "sex_imbalance_in_label"} & set(said(both_labels(9)))


def test_languages_out_of_balance_are_remarked_on():
    rows = [a_row(i, label=TASK.labels[i % 2], language="da" if i else "fo") for i in range(5)]
    assert said(rows)["language_imbalance"].figures == {"counts": {"da": 4, "fo": 1}, "ratio": 4.0}
    assert "language_imbalance" not in said(both_labels(4, language="da"))


def test_a_speaker_who_contradicts_himself_is_remarked_on():
    rows = [a_row(i, label=TASK.labels[i % 2], speaker="folder:x", sex=("female", "male")[i % 2]) for i in range(4)]
    found = said(rows)
    assert found["speaker_of_two_sexes"].figures == {"speakers": {"folder:x": ["female", "male"]}}
    assert found["speaker_of_two_sexes"].message == "1 speaker is said to be of both sexes: folder:x"
    rows = [a_row(i, speaker="folder:x", language=("nb", "nn")[i % 2]) for i in range(4)]
    assert said(rows)["speaker_in_several_languages"].figures == {"speakers": {"folder:x": ["nb", "nn"]}}


def test_the_same_audio_under_two_speakers_is_remarked_on_also_where_the_copy_is_quarantined():
    rows = [a_row(0, id="x"), a_row(1, id="x", accepted=False), a_row(2, id="y"), a_row(3, id="y", speaker="folder:s2")]
    assert said(rows)["audio_of_several_speakers"].figures == {"speakers": [["folder:s0", "folder:s1"]]}


def test_equal_durations_and_sizes_are_remarked_on_and_refuse_nothing(found, version):
    utterances = [an_utterance(0), an_utterance(1, duration_s=1.0), an_utterance(2, source_bytes=40_000)]
    told = said(both_labels(2), utterances=utterances)
    assert told["duration_not_unique"].figures == {"recordings": 2}
    assert told["size_not_unique"].figures == {"recordings": 2}
    kinds = {remark["kind"] for remark in found.remarks}
    assert {"duration_not_unique", "size_not_unique"} <= kinds
    assert found.accepted == 7


def test_counts_that_are_not_as_published_are_remarked_on():
    published = {"recordings": 5, "labels": {"sad": 3, "angry": 2}, "speakers": 2, "source": "the paper"}
    corpus = {"name": "emodb", "found": 4, "labels": {"sad": 2, "angry": 2}, "published": published}
    remark = said(both_labels(4), corpora=[corpus])["counts_differ"]
    assert remark.message == "emodb: 4 recordings were found, 5 are published (sad 2 of 3)"
    assert remark.figures["labels"] == {"sad": {"found": 2, "published": 3}}
    complete = {**corpus, "found": 5, "labels": published["labels"]}
    for silent in (complete, {**corpus, "published": None}, {"name": "folder"}):
        assert "counts_differ" not in said(both_labels(4), corpora=[silent])


def test_a_gate_that_is_unknown_or_says_something_else_is_one_clear_error(tmp_path, repository):
    file = repository / "configs" / "emotion.yaml"
    with pytest.raises(ConfigError, match=r"unknown key 'validation\.gates\.low_snrr'.*did you mean"):
        load_config(file, ["validation.gates.low_snrr=warn"])
    with pytest.raises(ConfigError, match=r"'validation\.gates\.low_snr' = 'refuse'"):
        load_config(file, ["validation.gates.low_snr=refuse"])
    with pytest.raises(ConfigError, match=r"unknown key 'validation\.gates\.undecodable'"):
        load_config(file, ["validation.gates.undecodable=warn"])


def test_ten_thousand_rows_are_checked_in_a_moment():
    measured = Measured("x", 1.0, -20.0, -3.0, 0.0, 0.0, 0.1, 30.0, 7_000.0)
    rows = [an_utterance(i, source_id=f"a:{i}", raw_label="sad", sample_rate=RATE) for i in range(10_000)]
    rows = [dataclasses.replace(row, id="x", duration_s=1.0, source_sample_rate=RATE, corpus="a") for row in rows]
    examine(rows[:1], [measured], TASK, CONFIG)  # pandas is imported
    start = time.process_time()
    found = examine(rows, [measured] * len(rows), TASK, CONFIG)
    assert time.process_time() - start < 5.0
    assert not any(found)
