"""The evaluation report says what a reader must know, whatever the figures are."""

import html
import re

import numpy as np
import pytest

from kubevox.config import EvaluateConfig, GateConfig
from kubevox.evaluation import Cost, Figures, Predictions, comparison_problem, judge, score
from kubevox.evaluation.intervals import Estimate
from kubevox.evaluation.probe import CorpusProbe, LabelProbe
from kubevox.evaluation.report import ScoredModel, render_report
from kubevox.page import SYNTHETIC_NOTICE

LABELS = ["angry", "happy", "<b>sad</b> $x^2$"]
LINEAGE = {"dataset": "d" * 64, "split": "5" * 64, "bundle": "b" * 64, "code": None}
CERTIFICATE = {
    "checks": [
        {"name": "speaker-disjoint", "passed": True, "detail": "9 speakers, none in two splits"},
        {"name": "sentence-disjoint", "passed": None, "detail": "not asked for"},
    ],
    "unverified_corpora": {},
    "speakers": {"train": 5, "validation": 2, "test": 4},
    "utterances": {"train": 50, "validation": 20, "test": 60},
    "labels": {split: dict.fromkeys(LABELS, 10) for split in ("train", "validation", "test")},
}
CURVES = [
    {"epoch": 1, "train_loss": 1.5, "val_loss": 1.6, "val_uar": 0.3, "lr": 1e-3},
    {"epoch": 2, "train_loss": 1.1, "val_loss": float("nan"), "val_uar": 0.5, "lr": 5e-4},
]


def model(name, seed=0, skill=2.0, classes=3):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, 60)
    logits = rng.normal(size=(60, 3))
    logits[np.arange(60), truth] += skill
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    predictions = Predictions(
        ids=[str(i) for i in range(60)],
        truth=[LABELS[i] for i in truth],
        probabilities=probabilities,
        speakers=[f"c:{i % 4}" for i in range(60)],
        corpora=["c"] * 60,
        sexes=["female" if i % 2 else None for i in range(60)],
    )
    return ScoredModel(name, score(predictions, LABELS, EvaluateConfig(bootstrap_samples=100)), Cost(1234, 3.0, 4.5))


def report(candidate=None, gate=None, champion=None, problem=None, **rest):
    candidate = candidate or model("rescnn")
    figures = Figures.of(champion.scores, champion.cost) if champion else None
    verdict = judge(Figures.of(candidate.scores, candidate.cost), gate or GateConfig(), figures, problem)
    values = {"certificate": CERTIFICATE, "lineage": LINEAGE, "synthetic": False, "champion": champion} | rest
    return render_report(task="emotion", model=candidate, verdict=verdict, **values)


def text(page):
    """The page's words, without markup, styles and scripts."""
    body = re.sub(r"<(style|script|title)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_on_synthetic_data_the_first_line_says_so():
    assert text(report(synthetic=True)).startswith(SYNTHETIC_NOTICE)
    assert "synthetic" not in text(report())


def test_uar_stands_at_the_top_with_its_interval():
    candidate = model("rescnn")
    uar = candidate.scores.uar
    assert f"UAR {uar.value:.3f} 95% interval {uar.low:.3f} – {uar.high:.3f}" in text(report(candidate))


def test_a_rejection_names_every_failed_criterion_in_words():
    page = text(report(gate=GateConfig(min_uar=0.999, max_parameters=10)))
    assert "Rejected: 2 of 5 criteria do not hold: uar, parameters." in page
    assert page.count("✗ fail") == 2
    assert "gate.max_parameters" in page


def test_baseline_and_champion_stand_beside_the_model():
    candidate, baseline, champion = model("rescnn"), model("cnn1d", 1, 0.5), model("v3", 2)
    page = text(report(candidate, baseline=baseline, champion=champion))
    assert "rescnn (this model) cnn1d (baseline) v3 (champion)" in page
    difference = candidate.scores.uar.value - baseline.scores.uar.value
    assert f"Against the baseline, cnn1d: UAR {difference:+.3f}" in page


def test_a_refused_comparison_is_explained():
    problem = comparison_problem(LABELS, ["c:1"], LABELS, ["c:1", "c:2"])
    assert "Comparison refused: the champion was trained on 1 of the 2 test speakers: c:1." in text(
        report(problem=problem)
    )


def test_speakers_in_splits_are_stated_from_the_certificate():
    page = text(report())
    assert "No speaker is in two splits." in page
    assert "train 5 50" in page


def test_a_corpus_without_speakers_weakens_the_statement():
    page = text(report(certificate=CERTIFICATE | {"unverified_corpora": {"crowd": 12}}))
    assert "No speaker is in two splits." not in page
    assert "could not be verified for crowd (12 recordings)" in page


def test_a_split_nobody_can_verify_is_not_called_disjoint():
    checks = [
        {"name": "speaker-disjoint", "passed": None, "detail": "no corpus names its speakers"},
        {"name": "speaker-disjoint: unverified", "passed": None, "detail": "crowd (12 recordings without a speaker)"},
    ]
    page = text(report(certificate=CERTIFICATE | {"checks": checks, "unverified_corpora": {"crowd": 12}}))
    assert "could not be verified for crowd (12 recordings)" in page
    assert "– unverified speaker-disjoint: unverified crowd (12 recordings without a speaker)" in page
    assert "No speaker is in two splits." not in page


def test_the_figure_without_unverified_corpora_stands_beside_the_headline():
    verified = model("rescnn", 5).scores
    page = text(report(verified_only=verified))
    assert f"UAR, speakers verified {verified.uar.value:.3f} 95% interval {verified.uar.low:.3f}" in page
    assert "speakers verified" not in text(report())


def test_what_the_figure_without_unverified_corpora_leaves_out_is_said():
    page = text(report(verified_only=model("rescnn", 5, classes=2).scores))
    assert f"Speakers verified: No test recording is labelled {LABELS[2]}: the recall there is not known" in page
    assert "Speakers verified: No test" not in text(report(verified_only=model("rescnn", 5).scores))


def test_warnings_of_the_certificate_are_passed_on():
    page = text(report(certificate=CERTIFICATE | {"warnings": ["test has fewer than 2 speakers of sad (1)"]}))
    assert "Test has fewer than 2 speakers of sad (1)." in page


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"protocol": "kfold", "folds": 5, "fold": 3}, "Of 5 folds, number 3 is the test split."),
        ({"protocol": "leave_one_corpus_out", "held_out": "emodb"}, "The corpus emodb is the test split"),
    ],
)
def test_the_protocol_is_said(config, words):
    assert words in text(report(certificate=CERTIFICATE | {"config": config}))


def test_the_channel_has_its_own_section():
    probe = CorpusProbe(
        corpora=("fleurs", "ravnursson"),
        fitted_on=900,
        scored_on=300,
        uar=Estimate(0.98, 0.97, 0.99),
        within_label=(LabelProbe("happy", ("fleurs", "ravnursson"), Estimate(0.9, 0.8, 0.95)),),
        label_uar_from_corpus=0.875,
        chance_of_label=0.25,
    )
    page = text(report(probe=probe, certificate=CERTIFICATE | {"single_corpus_labels": {"angry": "ravnursson"}}))
    assert "Labels that a single corpus has: angry (ravnursson). There the channel alone gives the label away." in page
    assert "names the corpus of the test recordings with a UAR of 0.980 (0.970 – 0.990); chance is 0.500" in page
    assert "names the label with a UAR of 0.875; chance is 0.250" in page
    assert "happy fleurs, ravnursson 0.900 (0.800 – 0.950) 0.500" in page
    assert "How recognisable the corpora are" not in text(report())


def test_a_certificate_that_does_not_hold_is_not_glossed_over():
    checks = [{"name": "speaker-disjoint", "passed": False, "detail": "speaker c:1 is in train and test"}]
    page = text(report(certificate=CERTIFICATE | {"checks": checks}))
    assert "It is not certified that no speaker is in two splits: speaker c:1" in page


def test_an_absent_label_is_said_and_drawn_as_such():
    page = text(report(model("rescnn", classes=2)))
    assert "No test recording is labelled <b>sad</b> $x^2$" in page
    assert "no test recording" in page


def test_labels_are_text_and_never_markup():
    page = report()
    assert "<b>sad" not in page
    assert page.count("<script>") == 1


def test_curves_are_drawn_where_there_are_some():
    assert "Training" in text(report(curves=CURVES))
    assert "Training" not in text(report())


@pytest.mark.filterwarnings("error")
def test_a_model_without_a_timing_and_with_one_test_speaker_can_be_reported():
    timed = model("rescnn")
    verdict = judge(Figures.of(timed.scores, timed.cost), GateConfig())
    page = render_report(
        task="emotion",
        model=ScoredModel("rescnn", timed.scores),
        verdict=verdict,
        certificate=CERTIFICATE,
        lineage=LINEAGE,
        synthetic=False,
        curves=CURVES[:1],
    )
    assert "b" * 64 in page
