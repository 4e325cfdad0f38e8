"""Evaluation of encoder-decoder and causal language models: zero- and few-shot, direct and CoT.

Names are loaded when first used, so that ``import flan_moe.eval`` and the command line's help need
neither torch nor matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flan_moe.eval.__about__ import __version__

if TYPE_CHECKING:
    from flan_moe.eval.adapters.causal import HFCausalModel
    from flan_moe.eval.adapters.loading import load_language_model
    from flan_moe.eval.adapters.seq2seq import HFSeq2SeqModel
    from flan_moe.eval.compare import Comparison, GroupComparison, TaskComparison, compare_runs
    from flan_moe.eval.evaluation import evaluate
    from flan_moe.eval.language_model import Fingerprinted, LanguageModel, TokenAware
    from flan_moe.eval.plan import Decoding
    from flan_moe.eval.report import write_report
    from flan_moe.eval.report_inputs import Heatmap, Point, Series
    from flan_moe.eval.requests import GenerateRequest, Loglikelihood, LoglikelihoodRequest
    from flan_moe.eval.results import GroupScore, Results, ResultsError, TaskScore
    from flan_moe.eval.run import CellKey, Run, load_run
    from flan_moe.eval.samples import Sample, SampleLogError
    from flan_moe.eval.statistics import Interval
    from flan_moe.eval.suite import Item, Suite, SuiteError, Task, load_suite

_HOME = {
    "CellKey": "run",
    "Comparison": "compare",
    "Decoding": "plan",
    "Fingerprinted": "language_model",
    "GenerateRequest": "requests",
    "GroupComparison": "compare",
    "GroupScore": "results",
    "HFCausalModel": "adapters.causal",
    "HFSeq2SeqModel": "adapters.seq2seq",
    "Heatmap": "report_inputs",
    "Interval": "statistics",
    "Item": "suite",
    "LanguageModel": "language_model",
    "Loglikelihood": "requests",
    "LoglikelihoodRequest": "requests",
    "Point": "report_inputs",
    "Results": "results",
    "ResultsError": "results",
    "Run": "run",
    "Sample": "samples",
    "SampleLogError": "samples",
    "Series": "report_inputs",
    "Suite": "suite",
    "SuiteError": "suite",
    "Task": "suite",
    "TaskComparison": "compare",
    "TaskScore": "results",
    "TokenAware": "language_model",
    "compare_runs": "compare",
    "evaluate": "evaluation",
    "load_language_model": "adapters.loading",
    "load_run": "run",
    "load_suite": "suite",
    "write_report": "report",
}

__all__ = [
    "CellKey",
    "Comparison",
    "Decoding",
    "Fingerprinted",
    "GenerateRequest",
    "GroupComparison",
    "GroupScore",
    "HFCausalModel",
    "HFSeq2SeqModel",
    "Heatmap",
    "Interval",
    "Item",
    "LanguageModel",
    "Loglikelihood",
    "LoglikelihoodRequest",
    "Point",
    "Results",
    "ResultsError",
    "Run",
    "Sample",
    "SampleLogError",
    "Series",
    "Suite",
    "SuiteError",
    "Task",
    "TaskComparison",
    "TaskScore",
    "TokenAware",
    "__version__",
    "compare_runs",
    "evaluate",
    "load_language_model",
    "load_run",
    "load_suite",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
