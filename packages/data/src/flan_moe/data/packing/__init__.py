"""Packing for encoder-decoders: rows of several examples under two budgets, without state."""

from flan_moe.data.packing.batch import IGNORE_INDEX, Overlong, pack_examples
from flan_moe.data.packing.budget import TargetBudget, choose_target_budget
from flan_moe.data.packing.collator import MAX_WORKERS, PackedCollator
from flan_moe.data.packing.rows import assign_rows

__all__ = [
    "IGNORE_INDEX",
    "MAX_WORKERS",
    "Overlong",
    "PackedCollator",
    "TargetBudget",
    "assign_rows",
    "choose_target_budget",
    "pack_examples",
]
