"""Packing for encoder-decoders: rows of several examples under two budgets, without state."""

from flan_moe.data.packing.batch import IGNORE_INDEX, Overlong, lay_out, pack_examples
from flan_moe.data.packing.budget import TargetBudget, choose_target_budget
from flan_moe.data.packing.collator import MAX_WORKERS, PackedCollator
from flan_moe.data.packing.rows import assign_rows
from flan_moe.data.packing.windows import WINDOW, pack_windows

__all__ = [
    "IGNORE_INDEX",
    "MAX_WORKERS",
    "WINDOW",
    "Overlong",
    "PackedCollator",
    "TargetBudget",
    "assign_rows",
    "choose_target_budget",
    "lay_out",
    "pack_examples",
    "pack_windows",
]
