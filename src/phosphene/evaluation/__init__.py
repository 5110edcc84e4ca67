"""How far a decoder can be believed: metrics, named protocols, rivals, intervals, nulls, audits, scorecards."""

from __future__ import annotations

from phosphene.evaluation.audits import leave_cluster_out, participation_ratio
from phosphene.evaluation.compare import Comparison, compare
from phosphene.evaluation.evaluate import evaluate
from phosphene.evaluation.scorecard import Score, Scorecard

__all__ = ["Comparison", "Score", "Scorecard", "compare", "evaluate", "leave_cluster_out", "participation_ratio"]
