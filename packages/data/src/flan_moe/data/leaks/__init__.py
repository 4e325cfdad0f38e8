"""Leaks: which training samples show evaluation questions, found by exact text and by n-grams."""

from flan_moe.data.leaks.evaluation import EVALUATION_FORMATS, EvaluationItem, read_evaluation
from flan_moe.data.leaks.index import EvaluationIndex
from flan_moe.data.leaks.report import LeakReport, write_report
from flan_moe.data.leaks.scan import Leak, TrainingText, scan

__all__ = [
    "EVALUATION_FORMATS",
    "EvaluationIndex",
    "EvaluationItem",
    "Leak",
    "LeakReport",
    "TrainingText",
    "read_evaluation",
    "scan",
    "write_report",
]
