"""The tasks of the Flan collection as data: sizes, sources, licences, evaluation overlaps."""

from flan_moe.data.registry.evaluation_sets import EVALUATION, EvaluationSet, Overlap
from flan_moe.data.registry.registry import Registry, load_registry
from flan_moe.data.registry.task import RegisteredTask, Template
from flan_moe.data.registry.totals import MixtureTotal, mixture_totals

__all__ = [
    "EVALUATION",
    "EvaluationSet",
    "MixtureTotal",
    "Overlap",
    "RegisteredTask",
    "Registry",
    "Template",
    "load_registry",
    "mixture_totals",
]
