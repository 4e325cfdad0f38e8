"""A training example in text, the unit that readers yield and shard writers take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Example:
    """One prompt and its target.

    Attributes:
        task: Name of the task, unique within a built data set.
        mixture: Name of the mixture that the task belongs to.
        template: Which setting, form and wording made the prompt: ``"fs_opt/few_shot/2"``. Starts
            with one of `flan_moe.data.template_types.TEMPLATE_TYPES`.
        prompt: What the encoder reads.
        target: What the decoder learns to write.
        meta: Whatever else is known. ``meta["shown"]`` lists the zero-shot prompt of every problem
            inside ``prompt``, exemplars included, and ``meta["problems"]`` the same problems
            without any wording, for checks against evaluation data.
    """

    task: str
    mixture: str
    template: str
    prompt: str
    target: str
    meta: Mapping[str, Any] = field(default_factory=dict)
