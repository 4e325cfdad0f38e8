"""`RouterConfig`: what a user chooses about a router."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ROUTER_NAMES = ("switch", "top_k", "expert_choice")


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """A router, by name and options. Immutable; refuses impossible values when it is made.

    Attributes:
        name: ``"switch"`` (top-1), ``"top_k"`` (tokens choose k experts) or ``"expert_choice"``
            (experts choose tokens).
        num_experts: E.
        top_k: experts per token. Must be 1 for ``"switch"``; has no meaning for
            ``"expert_choice"`` and must be left at 1 there.
        capacity_factor: in training, an expert takes at most ``round(factor * T / E)`` tokens
            (see `expert_capacity`; the factor is *per choice*: it is not multiplied by
            ``top_k``). None: no limit (dropless). ``"expert_choice"`` requires a number.
        eval_capacity_factor: the same in evaluation. None: dropless; for ``"expert_choice"``,
            the training factor.
        min_capacity: lower bound of the capacity, in tokens.
        jitter: in training, multiply the router's own copy of its input by noise from
            ``U(1 - jitter, 1 + jitter)``.
        normalize_weights: renormalise the gates of a token's selected experts to sum to one
            (over the selection before capacity drops any of it). With ``top_k=1`` this makes
            every weight 1, so that the task loss no longer trains the router.

    Raises:
        ValueError: naming the key, the value and what was expected.
    """

    name: str = "switch"
    num_experts: int = 8
    top_k: int = 1
    capacity_factor: float | None = 1.25
    eval_capacity_factor: float | None = None
    min_capacity: int = 4
    jitter: float = 0.0
    normalize_weights: bool = False

    def __post_init__(self) -> None:
        if self.name not in ROUTER_NAMES:
            _refuse("name", self.name, f"one of {', '.join(map(repr, ROUTER_NAMES))}")
        self._require_int("num_experts", minimum=1)
        self._require_int("top_k", minimum=1)
        self._require_int("min_capacity", minimum=0)
        self._require_factor("capacity_factor")
        self._require_factor("eval_capacity_factor")
        if not _is_number(self.jitter) or not 0.0 <= self.jitter < 1.0:
            _refuse("jitter", self.jitter, "a number in [0, 1)")
        if not isinstance(self.normalize_weights, bool):
            _refuse("normalize_weights", self.normalize_weights, "true or false")
        if self.top_k > self.num_experts:
            _refuse("top_k", self.top_k, f"at most num_experts, which is {self.num_experts}")
        if self.name == "switch" and self.top_k != 1:
            _refuse("top_k", self.top_k, "1 for name='switch' (use name='top_k' for more)")
        if self.name == "switch" and self.normalize_weights:
            _refuse(
                "normalize_weights",
                True,
                "false for name='switch': with one expert per token every weight would be 1 and "
                "the task loss would not train the router (name='top_k', top_k=1 allows it)",
            )
        if self.name == "expert_choice":
            if self.top_k != 1:
                _refuse(
                    "top_k",
                    self.top_k,
                    "1 for name='expert_choice': experts choose tokens, capacity_factor says how "
                    "many",
                )
            if self.capacity_factor is None:
                _refuse("capacity_factor", None, "a number for name='expert_choice'")

    @property
    def is_causal(self) -> bool:
        """Whether a token's routing is independent of later tokens; False for expert choice."""
        return self.name != "expert_choice"

    def to_dict(self) -> dict[str, Any]:
        """The options as a plain dict that `from_dict` takes back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RouterConfig:
        """Make a config from a mapping such as a parsed JSON or YAML node.

        Raises:
            ValueError: naming keys that are not options of a router, or an impossible value.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(str(key) for key in values if key not in known)
        if unknown:
            raise ValueError(
                f"unknown router option(s) {', '.join(map(repr, unknown))}; "
                f"known: {', '.join(sorted(known))}"
            )
        return cls(**values)

    def _require_int(self, key: str, *, minimum: int) -> None:
        value = getattr(self, key)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            _refuse(key, value, f"an integer of at least {minimum}")

    def _require_factor(self, key: str) -> None:
        value = getattr(self, key)
        if value is None:
            return
        if not _is_number(value) or not 0.0 < value < float("inf"):
            _refuse(key, value, "a positive number, or null for dropless")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse(key: str, value: object, expected: str) -> None:
    raise ValueError(f"router option {key}={value!r}: expected {expected}")
