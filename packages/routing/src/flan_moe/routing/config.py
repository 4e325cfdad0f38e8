"""`RouterConfig`: what a user chooses about a router."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from flan_moe.routing.presets import NEUTRAL, PRESETS
from flan_moe.routing.registry import find_router

ROUTER_NAMES = tuple(PRESETS)

Score = Literal["softmax", "sigmoid", "sqrt_softplus", "top_k_softmax"]
Selection = Literal["top_k", "expert_choice", "hash", "uniform"]
SecondExpert = Literal["all", "threshold", "random", "sampling"]
CapacityPer = Literal["choice", "total"]
CapacityRounding = Literal["round", "floor", "ceil", "per_choice_ceil"]
DropOrder = Literal["token", "choice", "priority", "gate"]
Weights = Literal["score", "uniform"]
Renormalise = Literal["never", "before_drop", "after_drop"]
BalanceCount = Literal["all_choices", "first_choice"]
Normalisation = Literal["one", "k"]
BalanceScope = Literal["batch", "sequence", "global"]
BiasUpdate = Literal["sign", "quantile"]
EXTRA_LOSSES = ("importance", "load")


class _Unset(enum.Enum):
    """The default of an option: whatever the preset says."""

    PRESET = enum.auto()

    def __repr__(self) -> str:
        return "<of the preset>"


_PRESET: Any = _Unset.PRESET


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """A router: a preset's name, and every option that the preset does not decide as you want it.

    Immutable; refuses impossible values when it is made. Options that are not given are those of
    the preset (`flan_moe.routing.presets`); afterwards all of them are spelled out.

    Attributes:
        name: a preset: ``"switch"``, ``"top_k"``, ``"expert_choice"``, ``"st_moe"``,
            ``"deepseek_v3"``, ... or one that is registered from outside.
        num_experts: E.
        top_k: experts per token; 1 for expert choice, where capacity says how many.
        score: what a logit is worth: ``"softmax"`` over the experts, ``"sigmoid"``,
            ``"sqrt_softplus"`` (DeepSeek-V4), or ``"top_k_softmax"`` (softmax over the chosen
            experts only).
        jitter: in training, multiply the router's own copy of its input by noise from
            ``U(1 - jitter, 1 + jitter)``.
        noise: in training, add Gaussian noise of this standard deviation to the logits (V-MoE).
        selection: who chooses: ``"top_k"`` (tokens choose experts), ``"expert_choice"`` (experts
            choose tokens), ``"hash"`` (by token id), ``"uniform"`` (round robin).
        num_groups, top_groups: experts fall into ``num_groups`` equal groups, and a token chooses
            within its ``top_groups`` best, a group being worth the sum of its two best experts.
        second_expert, eval_second_expert: in training and in evaluation, whether a token's second
            choice takes part (``top_k=2``): ``"all"``; ``"threshold"``, if its share of the two
            gates is above ``second_threshold``; ``"random"``, with probability
            share / ``second_threshold``; ``"sampling"``, drawn from the softmax of the others.
        second_threshold: see there.
        bias_update: loss-free balancing: a bias per expert that decides selection, not weights,
            updated by `RouterBalancer`: ``"sign"`` (DeepSeek-V3), ``"quantile"`` (Kimi K3), None.
        bias_rate: step of ``"sign"``.
        vocab_size, hash_seed: for ``selection="hash"``: how many token ids there are, and the
            seed of their experts.
        capacity_factor: in training, an expert takes a bounded number of assignments, see
            `expert_capacity`. None: no limit (dropless). Expert choice requires a number.
        eval_capacity_factor: the same in evaluation. None: dropless; for expert choice, the
            training factor.
        min_capacity: lower bound of the capacity, in assignments.
        capacity_per: whether the factor counts per ``"choice"`` (factor * T / E) or in
            ``"total"`` (factor * k * T / E).
        capacity_rounding: ``"round"`` (halves to even), ``"floor"``, ``"ceil"``, or
            ``"per_choice_ceil"`` (k times the floor of factor * ceil(T / E)).
        capacity_multiple: round the capacity up to a multiple of this.
        drop_order: who is served first, see `fits_capacity`: ``"token"``, ``"choice"``,
            ``"priority"`` or ``"gate"``.
        weights: ``"score"``, or ``"uniform"`` (1 / top_k, nothing is learned).
        renormalise: make a token's weights sum to one: ``"never"``; over all its choices,
            ``"before_drop"``; over those that were kept, ``"after_drop"``.
        weight_scale: every weight is multiplied by this, last.
        balance_count: which choices the balance loss counts.
        balance_normalisation: its value at balance: ``"one"``, or ``"k"`` (where all choices are
            counted and not divided by k).
        balance_scope: over what it balances: the tokens of a call (``"batch"``), each sequence
            (``"sequence"``), or all calls and ranks of an optimizer step (``"global"``, with a
            `RouterBalancer`).
        extra_losses: of ``"importance"`` and ``"load"`` (Shazeer et al. 2017).
        check_finite: refuse logits that are not finite; waits for the device.
        extra: options of a router class from outside this package.

    Raises:
        ValueError: naming the key, the value and what was expected.
    """

    name: str = "switch"
    num_experts: int = _PRESET
    top_k: int = _PRESET
    score: Score = _PRESET
    jitter: float = _PRESET
    noise: float = _PRESET
    selection: Selection = _PRESET
    num_groups: int = _PRESET
    top_groups: int = _PRESET
    second_expert: SecondExpert = _PRESET
    eval_second_expert: SecondExpert = _PRESET
    second_threshold: float = _PRESET
    bias_update: BiasUpdate | None = _PRESET
    bias_rate: float = _PRESET
    vocab_size: int | None = _PRESET
    hash_seed: int = _PRESET
    capacity_factor: float | None = _PRESET
    eval_capacity_factor: float | None = _PRESET
    min_capacity: int = _PRESET
    capacity_per: CapacityPer = _PRESET
    capacity_rounding: CapacityRounding = _PRESET
    capacity_multiple: int = _PRESET
    drop_order: DropOrder = _PRESET
    weights: Weights = _PRESET
    renormalise: Renormalise = _PRESET
    weight_scale: float = _PRESET
    balance_count: BalanceCount = _PRESET
    balance_normalisation: Normalisation = _PRESET
    balance_scope: BalanceScope = _PRESET
    extra_losses: tuple[str, ...] = _PRESET
    check_finite: bool = _PRESET
    extra: Mapping[str, Any] = field(default=_PRESET, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            _refuse("name", self.name, "the name of a router")
        preset = find_router(self.name)
        for key, neutral in NEUTRAL.items():
            if getattr(self, key) is _PRESET:
                object.__setattr__(self, key, preset.options.get(key, neutral))
        self._check_each()
        self._check_together()
        object.__setattr__(self, "extra_losses", tuple(self.extra_losses))
        object.__setattr__(self, "extra", dict(self.extra))
        if self.extra and preset.router is None:
            _refuse("extra", dict(self.extra), f"nothing: router {self.name!r} has no own options")

    @property
    def has_capacity(self) -> bool:
        """Whether an expert may have to turn assignments away, in training or evaluation."""
        return self.capacity_factor is not None or self.eval_capacity_factor is not None

    @property
    def is_causal(self) -> bool:
        """Whether the rule of routing looks at earlier tokens only.

        False for expert choice, and where later tokens with better gates are served first. The
        order ``"choice"`` counts as causal, as in the decoders of the reference implementations,
        although under a binding capacity a second choice waits for later tokens' first choices;
        ``"token"`` is causal without exception.
        """
        if self.selection == "expert_choice":
            return False
        return not self.has_capacity or self.drop_order in ("token", "choice")

    @property
    def is_learned(self) -> bool:
        """Whether there is a weight to learn; not where neither choice nor weights need scores."""
        return self.weights == "score" or self.selection not in ("hash", "uniform")

    def to_dict(self) -> dict[str, Any]:
        """The options as a plain dict that `from_dict` takes back."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**values, "extra_losses": list(self.extra_losses), "extra": dict(self.extra)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RouterConfig:
        """Make a config from a mapping such as a parsed JSON or YAML node.

        Raises:
            TypeError: if it is no mapping.
            ValueError: naming keys that are not options of a router, or an impossible value.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"RouterConfig.from_dict: expected a mapping, got {values!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(str(key) for key in values if key not in known)
        if unknown:
            raise ValueError(
                f"unknown router option(s) {', '.join(map(repr, unknown))}; "
                f"known: {', '.join(sorted(known))}"
            )
        return cls(**values)

    def _check_each(self) -> None:
        for key, hint in _choices().items():
            value = getattr(self, key)
            if value not in hint or isinstance(value, bool):
                _refuse(key, value, f"one of {', '.join(map(repr, hint))}")
        for key, minimum in (
            ("num_experts", 1),
            ("top_k", 1),
            ("num_groups", 1),
            ("top_groups", 1),
            ("min_capacity", 0),
            ("capacity_multiple", 1),
            ("hash_seed", 0),
        ):
            self._require_int(key, minimum=minimum)
        if self.vocab_size is not None:
            self._require_int("vocab_size", minimum=1)
        for key in ("capacity_factor", "eval_capacity_factor"):
            if getattr(self, key) is not None:
                self._require_number(key, "a positive number, or null for dropless", above=0.0)
        for key in ("second_threshold", "bias_rate", "weight_scale"):
            self._require_number(key, "a positive number", above=0.0)
        if not _is_number(self.noise) or not 0.0 <= self.noise < float("inf"):
            _refuse("noise", self.noise, "a number that is not negative")
        if not _is_number(self.jitter) or not 0.0 <= self.jitter < 1.0:
            _refuse("jitter", self.jitter, "a number in [0, 1)")
        if not isinstance(self.check_finite, bool):
            _refuse("check_finite", self.check_finite, "true or false")
        if not isinstance(self.extra, Mapping):
            _refuse("extra", self.extra, "a mapping")
        if not isinstance(self.extra_losses, list | tuple) or not all(
            loss in EXTRA_LOSSES for loss in self.extra_losses
        ):
            _refuse("extra_losses", self.extra_losses, f"some of {', '.join(EXTRA_LOSSES)}")

    def _check_together(self) -> None:
        if self.top_k > self.num_experts:
            _refuse("top_k", self.top_k, f"at most num_experts, which is {self.num_experts}")
        if self.name == "switch" and self.top_k != 1:
            _refuse("top_k", self.top_k, "1 for name='switch' (use name='top_k' for more)")
        if self.name == "switch" and self.renormalise != "never":
            _refuse(
                "renormalise",
                self.renormalise,
                "'never' for name='switch': with one expert per token every weight would be 1 and "
                "the task loss would not train the router (name='top_k', top_k=1 allows it)",
            )
        if self.selection == "expert_choice":
            self._check_expert_choice()
        self._check_groups()
        for key in ("second_expert", "eval_second_expert"):
            if getattr(self, key) != "all" and (self.top_k != 2 or self.selection != "top_k"):
                _refuse(key, getattr(self, key), "'all' unless tokens choose two experts (top_k=2)")
        self._check_bias()
        if self.weights == "uniform" and self.selection not in ("hash", "uniform"):
            _refuse("weights", "uniform", "'score' where experts are chosen by score")
        if self.balance_scope == "global" and self.balance_count != "all_choices":
            _refuse("balance_count", self.balance_count, "'all_choices' for balance_scope='global'")
        if "load" in self.extra_losses and self.noise == 0:
            _refuse("extra_losses", self.extra_losses, "no 'load' without noise above 0")

    def _check_expert_choice(self) -> None:
        if self.top_k != 1:
            _refuse(
                "top_k",
                self.top_k,
                "1 for expert choice: experts choose tokens, capacity_factor says how many",
            )
        if self.capacity_factor is None:
            _refuse("capacity_factor", None, "a number for expert choice")
        if self.score == "top_k_softmax":
            _refuse("score", self.score, "another score for expert choice")

    def _check_groups(self) -> None:
        groups = self.num_groups
        if groups == 1 and self.top_groups == 1:
            return
        if self.selection != "top_k":
            _refuse("num_groups", groups, "1 unless tokens choose experts by score")
        if self.num_experts % groups or self.num_experts // groups < 2:
            _refuse("num_groups", groups, f"a divisor of {self.num_experts}, two experts a group")
        if self.top_groups > groups:
            _refuse("top_groups", self.top_groups, f"at most num_groups, which is {groups}")
        if self.top_k > self.top_groups * (self.num_experts // groups):
            _refuse("top_k", self.top_k, "at most the experts in top_groups groups")

    def _check_bias(self) -> None:
        if self.bias_update is None:
            return
        if self.selection != "top_k":
            _refuse("bias_update", self.bias_update, "null unless tokens choose experts by score")
        if self.bias_update == "quantile" and self.top_k == self.num_experts:
            _refuse("bias_update", "quantile", "null where every expert is chosen (top_k = E)")
        if self.bias_update == "quantile" and self.top_groups < self.num_groups:
            _refuse(
                "bias_update", "quantile", "null or 'sign' where top_groups is below num_groups"
            )
        if self.bias_update == "quantile" and self.score not in ("softmax", "sigmoid"):
            _refuse("score", self.score, "'softmax' or 'sigmoid' for bias_update='quantile'")

    def _require_int(self, key: str, *, minimum: int) -> None:
        value = getattr(self, key)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            _refuse(key, value, f"an integer of at least {minimum}")

    def _require_number(self, key: str, expected: str, *, above: float) -> None:
        value = getattr(self, key)
        if not _is_number(value) or not above < value < float("inf"):
            _refuse(key, value, expected)


@functools.cache
def _choices() -> dict[str, tuple[object, ...]]:
    """The options that are one of a few words, with the words; None where it is allowed."""
    choices: dict[str, tuple[object, ...]] = {}
    for key, hint in get_type_hints(RouterConfig).items():
        parts = get_args(hint)
        literal = next((p for p in (hint, *parts) if _is_literal(p)), None)
        if literal is not None:
            words = get_args(literal)
            choices[key] = (*words, None) if type(None) in parts else words
    return choices


def _is_literal(hint: object) -> bool:
    return getattr(hint, "__origin__", None) is Literal


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse(key: str, value: object, expected: str) -> None:
    raise ValueError(f"router option {key}={value!r}: expected {expected}")
