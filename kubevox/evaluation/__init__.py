"""Figures, intervals, slices, the gate and the report of a model on the test split."""

from kubevox.evaluation.gate import Criterion, Figures, Verdict, comparison_problem, judge
from kubevox.evaluation.intervals import Estimate
from kubevox.evaluation.probe import CorpusProbe, probe_corpora
from kubevox.evaluation.report import ScoredModel, render_report
from kubevox.evaluation.scores import Cost, Predictions, Scores, Slice, score

__all__ = [
    "CorpusProbe",
    "Cost",
    "Criterion",
    "Estimate",
    "Figures",
    "Predictions",
    "ScoredModel",
    "Scores",
    "Slice",
    "Verdict",
    "comparison_problem",
    "judge",
    "probe_corpora",
    "render_report",
    "score",
]
