"""How far a decoder can be believed: metrics, named protocols, rivals, intervals, nulls, audits, scorecards."""

from __future__ import annotations

from phosphene.evaluation.audits import leave_cluster_out, participation_ratio
from phosphene.evaluation.compare import Comparison, compare
from phosphene.evaluation.efficiency import Efficiency, efficiency
from phosphene.evaluation.evaluate import evaluate
from phosphene.evaluation.multi_subject import multi_subject
from phosphene.evaluation.multilabel import LabelCard, evaluate_labels
from phosphene.evaluation.scorecard import Score, Scorecard
from phosphene.evaluation.text_comparison import TextComparison, compare_text
from phosphene.evaluation.text_retrieval import TextCard, text_retrieval

__all__ = [
    "Comparison",
    "Efficiency",
    "LabelCard",
    "Score",
    "Scorecard",
    "TextCard",
    "TextComparison",
    "compare",
    "compare_text",
    "efficiency",
    "evaluate",
    "evaluate_labels",
    "leave_cluster_out",
    "multi_subject",
    "participation_ratio",
    "text_retrieval",
]
