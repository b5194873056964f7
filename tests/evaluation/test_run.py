"""Evaluation: only the test split, by the split the model was trained on, and fair to the champion."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose

from kubevox import storage
from kubevox.config import CorpusSource, DataConfig, EvaluateConfig, FeaturesConfig, GateConfig, SplitConfig, TaskConfig
from kubevox.data.dataset import ingest, read_utterances
from kubevox.data.splits import make_split
from kubevox.errors import BundleError, SplitError, StorageError
from kubevox.evaluation.run import Evaluation, _names_compare, evaluate, load_evaluation
from kubevox.features import extract_shard, load_features
from kubevox.models.bundle import load_bundle
from kubevox.provenance import content_hash
from tests.tiny import CNN1D, EVALUATE, FEATURES, LENIENT, PLAN, RESCNN, TASK, Tiny, prepare, untrained_bundle


@pytest.fixture(scope="module")
def bundle(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> str:
    return untrained_bundle(tiny, tmp_path_factory.mktemp("challenger"))


def score(
    tiny: Tiny,
    store: Path,
    bundle: str,
    champion: str = "",
    baseline: str = "",
    config: EvaluateConfig = EVALUATE,
    gate: GateConfig = LENIENT,
) -> Evaluation:
    return evaluate(bundle, tiny.blocks, tiny.split.uri, FEATURES, config, gate, str(store), baseline, champion)


def criteria(evaluation: Evaluation) -> set[str]:
    return {criterion.name for criterion in evaluation.verdict.criteria}


def test_every_test_row_and_no_other_is_scored(tiny: Tiny, bundle: str, tmp_path: Path) -> None:
    evaluation = score(tiny, tmp_path, bundle)
    rows = tiny.split.of("test")
    ids = [utterance.id for utterance, _ in rows]
    loaded = load_bundle(bundle)
    features = load_features(tiny.blocks, loaded.spec.frontend, FEATURES.recipes["default"], ids)
    probabilities = evaluation.probabilities()
    assert list(probabilities) == ids
    assert_allclose(list(probabilities.values()), loaded.probabilities(features), atol=1e-6)
    table = pq.read_table(f"{evaluation.uri}/predictions.parquet").to_pydict()
    assert table["label"] == [label for _, label in rows]
    best = np.argmax(table["probabilities"], axis=1)
    assert table["predicted"] == [TASK.labels[index] for index in best]
    right = [said == label for said, (_, label) in zip(table["predicted"], rows, strict=True)]
    assert evaluation.scores.accuracy.value == pytest.approx(np.mean(right))
    assert evaluation.headline()["parameters"] == loaded.spec.parameters
    assert 0 < evaluation.cost.latency_p50_ms <= evaluation.cost.latency_p95_ms


def test_the_evidence_is_kept_and_read_back(tiny: Tiny, bundle: str, tmp_path: Path) -> None:
    evaluation = score(tiny, tmp_path, bundle)
    assert sorted(path.name for path in Path(evaluation.uri).iterdir()) == [
        "evaluation.json",
        "predictions.parquet",
        "report.html",
    ]
    assert load_evaluation(evaluation.uri) == evaluation
    content = json.loads(Path(evaluation.uri, "evaluation.json").read_text())
    assert (content["bundle"], content["split"]) == (bundle, tiny.split.uri)
    assert content["dataset"] == tiny.split.dataset.uri
    assert content["git_commit"]
    with pytest.raises(StorageError, match="no evaluation here"):
        load_evaluation(str(tmp_path / "nowhere"))


def test_what_was_evaluated_once_is_not_evaluated_again(tiny: Tiny, bundle: str, tmp_path: Path) -> None:
    first, again = score(tiny, tmp_path, bundle), score(tiny, tmp_path, bundle)
    assert (first.reused, again.reused) == (False, True)
    assert again.scores == first.scores
    assert again.cost == first.cost, "not even timed again"


@pytest.mark.parametrize("what", ["gate", "settings", "bundle", "champion", "baseline"])
def test_a_changed_question_is_answered_anew(what: str, tiny: Tiny, bundle: str, tmp_path: Path) -> None:
    first = score(tiny, tmp_path, bundle)
    other = untrained_bundle(tiny, tmp_path, CNN1D, speakers=[])
    asked = {
        "gate": {"gate": LENIENT.model_copy(update={"min_uar": 0.01})},
        "settings": {"config": EVALUATE.model_copy(update={"seed": 1})},
        "bundle": {"bundle": other},
        "champion": {"champion": other},
        "baseline": {"baseline": other},
    }[what]
    second = score(tiny, tmp_path, **{"bundle": bundle} | asked)
    assert not second.reused
    assert second.uri != first.uri


def test_a_bundle_of_another_split_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    for strange in ({"split_hash": "0" * 64}, {"labels": ["angry", "sad", "happy"]}):
        with pytest.raises(BundleError, match="not trained on split"):
            score(tiny, tmp_path, untrained_bundle(tiny, tmp_path, **strange))
    assert storage.list_names(f"{tmp_path}/evaluations") == []


def test_a_split_without_a_certificate_is_refused(bundle: str, tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="no certificate"):
        evaluate(bundle, [], str(tmp_path / "split"), FEATURES, EVALUATE, LENIENT, str(tmp_path))


def test_without_a_champion_only_the_absolute_criteria_hold(tiny: Tiny, bundle: str, tmp_path: Path) -> None:
    evaluation = score(tiny, tmp_path, bundle)
    assert evaluation.verdict.promote
    assert criteria(evaluation) == {"uar", "worst_recall", "calibration_error", "latency_p95_ms", "parameters"}
    assert evaluation.champion is None


def test_every_criterion_that_fails_rejects_by_name(tiny: Tiny, bundle: str, tmp_path: Path) -> None:
    gate = GateConfig(
        min_uar=1.0, min_worst_recall=1.0, max_calibration_error=0.0, max_latency_p95_ms=1e-6, max_parameters=1
    )
    evaluation = score(tiny, tmp_path, bundle, gate=gate)
    assert not evaluation.verdict.promote
    assert {criterion.name for criterion in evaluation.verdict.failed} == criteria(evaluation)


def test_a_champion_is_scored_on_the_same_rows_even_under_another_frontend(
    tiny: Tiny, bundle: str, tmp_path: Path
) -> None:
    champion = untrained_bundle(tiny, tmp_path, CNN1D, seed=3)
    evaluation = score(tiny, tmp_path, bundle, champion)
    alone = score(tiny, tmp_path, champion)
    assert evaluation.champion is not None
    assert evaluation.champion.uar.value == pytest.approx(alone.scores.uar.value)
    assert "uar_vs_champion" in criteria(evaluation)
    assert evaluation.headline()["champion_uar"] == pytest.approx(alone.scores.uar.value)


def test_a_champion_that_heard_a_test_speaker_is_no_measure_and_rejects(
    tiny: Tiny, bundle: str, tmp_path: Path
) -> None:
    heard = tiny.split.speakers("train", "test")
    evaluation = score(tiny, tmp_path, bundle, untrained_bundle(tiny, tmp_path, seed=3, speakers=heard))
    assert not evaluation.verdict.promote
    assert [criterion.name for criterion in evaluation.verdict.failed] == ["champion_comparable"]
    assert evaluation.champion is None
    assert tiny.split.speakers("test")[0] in evaluation.verdict.failed[0].explanation


def test_the_champion_itself_is_compared_with_nothing(tiny: Tiny, bundle: str, tmp_path: Path) -> None:
    evaluation = score(tiny, tmp_path, bundle, champion=bundle)
    assert evaluation.verdict.promote
    assert evaluation.champion is None
    assert score(tiny, tmp_path, bundle).reused, "the same as without a champion"


def test_a_baseline_stands_beside_the_model_and_decides_nothing(tiny: Tiny, bundle: str, tmp_path: Path) -> None:
    evaluation = score(tiny, tmp_path, bundle, baseline=untrained_bundle(tiny, tmp_path, CNN1D))
    assert evaluation.baseline is not None
    assert evaluation.headline()["baseline_uar"] == evaluation.baseline.uar.value
    assert criteria(evaluation) == criteria(score(tiny, tmp_path, bundle))


def test_a_report_on_people_does_not_begin_with_a_notice(tiny: Tiny, bundle: str, tmp_path: Path) -> None:
    page = Path(score(tiny, tmp_path, bundle).uri, "report.html").read_text()
    assert "synthetic" not in page[page.index("<body") : page.index("<h1")].lower()


def test_a_report_on_synthetic_speech_begins_by_saying_so(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    options = {"languages": ["en"], "speakers": 6, "sentences": 1, "emotions": ["anger", "neutral", "sadness"]}
    store = str(tmp_path / "store")
    data = DataConfig(corpora=[CorpusSource(name="synthetic", options=options)])
    dataset, _ = ingest(data, store)
    task = TaskConfig(
        name="mood", labels=["angry", "neutral", "sad"], map={"synthetic": {"anger": "angry", "sadness": "sad"}}
    )
    every = [utterance.source_id for utterance in read_utterances(dataset.shard_uris)]
    split, _ = make_split(dataset, every, task, SplitConfig(), store)
    features = FeaturesConfig(frontends={"logmel": FEATURES.frontends["logmel"]})
    plan = {"logmel": ["default"]}
    blocks = [extract_shard(shard, split.split_of, features, plan, store).uri for shard in dataset.shard_uris]
    spoken = Tiny(store, "", data, split, blocks)
    bundle = untrained_bundle(spoken, store, RESCNN, labels=list(split.labels))
    assert load_bundle(bundle).spec.synthetic
    evaluation = score(spoken, tmp_path, bundle)
    assert json.loads(Path(evaluation.uri, "evaluation.json").read_text())["synthetic"] is True
    page = Path(evaluation.uri, "report.html").read_text()
    first = page[page.index("<body") : page.index("<h1")].lower()
    assert "synthetic" in first
    assert "no evidence about people" in first


@pytest.fixture(scope="module")
def crowded(make_corpus: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A studio that names its speakers, and a crowd that does not but has published partitions."""
    root = tmp_path_factory.mktemp("crowded")
    folder = make_corpus(root / "corpus", speakers=12)
    lines = ["path,label,corpus,speaker,partition"]
    for path in sorted(folder.rglob("*.wav")):
        number = int(path.name[1:3])
        of_studio, parts = number < 6, ("train", "validation", "test")
        who = f"studio,s{number}," if of_studio else f"crowd,,{parts[number % 3]}"
        lines.append(f"{path.relative_to(folder)},{path.parent.name},{who}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    store = str(root / "store")
    data = DataConfig(corpora=[CorpusSource(name="folder", path=str(folder), options={"csv": "list.csv"})])
    dataset, _ = ingest(data, store)
    every = [utterance.source_id for utterance in read_utterances(dataset.shard_uris)]
    split, _ = make_split(dataset, every, TASK, SplitConfig(), store)
    blocks = [extract_shard(shard, split.split_of, FEATURES, PLAN, store).uri for shard in dataset.shard_uris]
    return Tiny(store, "", data, split, blocks)


def test_the_headline_is_also_given_without_corpora_that_name_no_speakers(crowded: Tiny, tmp_path: Path) -> None:
    evaluation = score(crowded, tmp_path, untrained_bundle(crowded, tmp_path))
    assert crowded.split.certificate["unverified_corpora"] == {"crowd": 36}
    named = [utterance for utterance, _ in crowded.split.of("test") if utterance.speaker]
    assert evaluation.verified_only is not None
    assert 0 < evaluation.verified_only.utterances == len(named) < evaluation.scores.utterances
    (part,) = (part for part in evaluation.scores.slices if part.value == "studio")
    assert evaluation.verified_only.uar.value == pytest.approx(part.uar.value)
    figures = evaluation.headline()
    assert figures["verified_only_uar"] == evaluation.verified_only.uar.value
    assert figures["verified_only_uar_low"] <= figures["verified_only_uar"] <= figures["verified_only_uar_high"]
    assert "speakers verified" in Path(evaluation.uri, "report.html").read_text()
    assert load_evaluation(evaluation.uri).verified_only == evaluation.verified_only


def test_where_all_speakers_are_known_there_is_one_headline(tiny: Tiny, bundle: str, tmp_path: Path) -> None:
    evaluation = score(tiny, tmp_path, bundle)
    assert evaluation.verified_only is None
    assert evaluation.corpus_probe is None
    assert not {"verified_only_uar", "corpus_probe_uar"} & set(evaluation.headline())


def test_two_corpora_are_probed_on_what_the_challenger_hears(crowded: Tiny, tmp_path: Path) -> None:
    for model in (RESCNN, CNN1D):
        evaluation = score(crowded, tmp_path, untrained_bundle(crowded, tmp_path, model))
        probe = evaluation.corpus_probe
        assert probe is not None
        assert probe.corpora == ("crowd", "studio")
        assert probe.fitted_on == len(crowded.split.of("train", "validation"))
        assert probe.scored_on == len(crowded.split.of("test"))
        assert evaluation.headline()["corpus_probe_uar"] == probe.uar.value
        assert json.loads(Path(evaluation.uri, "evaluation.json").read_text())["corpus_probe"] == probe.to_dict()
        assert "How recognisable the corpora are" in Path(evaluation.uri, "report.html").read_text()


def test_a_split_that_was_tampered_with_is_neither_trained_on_nor_evaluated(tiny_corpus: Path, tmp_path: Path) -> None:
    own = prepare(tmp_path, tiny_corpus)
    bundle = untrained_bundle(own, own.store)
    score(own, Path(own.store), bundle)  # the answer is in the store, and is not given for a split that does not hold
    place = Path(own.split.uri) / "certificate.json"
    certificate = json.loads(place.read_text())
    certificate["speakers"]["test"] += 1
    del certificate["seal"]
    place.write_text(json.dumps(certificate | {"seal": content_hash(certificate)}))
    with pytest.raises(SplitError, match="its speakers are not what the rows say"):
        score(own, Path(own.store), bundle)
    with pytest.raises(SplitError, match="its speakers are not what the rows say"):
        own.train()


@pytest.mark.parametrize(
    ("champion_key", "speakers", "key", "compare"),
    [
        ("a", ["ravdess:1"], "a", True),
        ("a", ["ravdess:1"], "b", False),
        (None, ["ravdess:1"], "b", False),  # named before there were keys
        (None, ["synthetic:f1"], "b", True),
        ("a", ["synthetic:f1"], "b", True),
        ("a", ["ravdess:1"], None, True),  # only machines are heard in the test
    ],
)
def test_names_under_two_keys_are_compared_only_where_no_person_could_be_missed(
    trained, champion_key, speakers, key, compare
):
    spec = load_bundle(trained.bundle_uri).spec
    spec = spec.model_copy(update={"key_fingerprint": champion_key, "speakers": speakers})
    assert _names_compare(spec, key) == compare
