"""Which form each training example takes.

Zero- or few-shot, with or without the answer options, direct or with its reasoning, in one of
several wordings. The same engine for generated and for real tasks.
"""

from flan_moe.data.forms.engine import Forms, UnderDefinition
from flan_moe.data.forms.shares import (
    COT_SHARE,
    FEW_SHOT_SHARE,
    FLAN_SHARES,
    MINI_SHARES,
    FormShares,
    shares_of,
)
from flan_moe.data.forms.style import Style

__all__ = [
    "COT_SHARE",
    "FEW_SHOT_SHARE",
    "FLAN_SHARES",
    "MINI_SHARES",
    "FormShares",
    "Forms",
    "Style",
    "UnderDefinition",
    "shares_of",
]
