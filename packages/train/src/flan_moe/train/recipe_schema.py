"""What a recipe can say: frozen dataclasses that check themselves.

Every class here can be built in Python as well as read from YAML (`flan_moe.train.recipe`); the
checks are the same. Durations and intervals are Composer time strings: ``600ba`` (batches), ``2ep``
(epochs), ``50000sp`` (examples), ``1000000tok`` (tokens).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from flan_moe.train.conform import Check, InvalidValueError, Validated, unexpected

_DURATION = re.compile(r"[1-9][0-9_]*(ba|ep|sp|tok)")
_EXAMPLES = re.compile(r"[1-9][0-9]*(_[0-9]+)*sp")

Positive = Annotated[
    float, Check(expected="a positive number", holds=lambda v: v > 0 and math.isfinite(v))
]
NonNegative = Annotated[
    float, Check(expected="a number of at least 0", holds=lambda v: v >= 0 and math.isfinite(v))
]
BelowOne = Annotated[
    float, Check(expected="a number from 0 up to but not including 1", holds=lambda v: 0 <= v < 1)
]
Fraction = Annotated[float, Check(expected="a number from 0 to 1", holds=lambda v: 0 <= v <= 1)]
PositiveInt = Annotated[int, Check(expected="a positive whole number", holds=lambda v: v > 0)]
NonNegativeInt = Annotated[
    int, Check(expected="a whole number of at least 0", holds=lambda v: v >= 0)
]
Seed = Annotated[
    int, Check(expected="a whole number from 0 to 2**32 - 1", holds=lambda v: 0 <= v < 2**32)
]
Duration = Annotated[
    str,
    Check(
        expected="a duration such as '600ba', '2ep', '50000sp' or '1000000tok'",
        holds=lambda v: _DURATION.fullmatch(v) is not None,
    ),
]
Name = Annotated[
    str,
    Check(
        expected="a name of letters, digits, '.', '_' and '-'",
        holds=lambda v: re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", v) is not None,
    ),
]


@dataclass(frozen=True, kw_only=True)
class ModelSection(Validated):
    """Which model is tuned.

    Attributes:
        preset: A preset of `flan_moe.model`, freshly initialised. The vocabulary size follows the
            data's tokenizer unless ``overrides`` gives one.
        path: A ``save_pretrained`` directory to start from instead of a preset.
        dense_twin: Train the dense model of equal FLOPs per token instead (presets only).
        overrides: Fields of `flan_moe.model.FlanMoEConfig` to set, e.g. ``dropout_rate``.
    """

    preset: str | None = None
    path: str | None = None
    dense_twin: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """One source of the model, and a twin only of a preset."""
        if (self.preset is None) == (self.path is None):
            given = "both" if self.preset is not None else "neither"
            raise InvalidValueError(("preset",), f"expected either preset or path, got {given}")
        if self.dense_twin and self.path is not None:
            raise InvalidValueError(
                ("dense_twin",),
                "expected false with model.path: the weights at a path belong to one architecture",
            )


@dataclass(frozen=True, kw_only=True)
class DataSection(Validated):
    """What the model is tuned on.

    Attributes:
        path: A folder built by ``flan-moe-data`` (``mini`` or ``build``), or the URL of one.
        cache: Of a URL: folder that its files are kept in; default: ``flan-moe-data`` in the user's
            cache directory.
        mixtures: Sampling weight of each mixture; absent mixtures are left out. Default: every
            mixture in the folder, at `flan_moe.data`'s default weights.
        mixture: Instead of ``mixtures`` a preset of `flan_moe.data`, or the YAML file of a mixture:
            sub-mixtures, caps, settings of prompts, tasks held out. A relative path starts at the
            recipe's folder; given as an override, where the command runs.
        curriculum: Number of raw examples, over all ranks since the start of training (``3200sp``),
            then weights of some of the mixture's sub-mixtures that hold from there on.
        batch_size: Raw examples per optimizer step, over all ranks.
        epoch_size: Raw examples per epoch; default: as many as there are.
        input_length: Encoder tokens of a packed row; default: the longest prompt the data were
            built for.
        target_length: Decoder tokens of a packed row; default: the same for targets.
        workers: Data loading processes per rank.
    """

    path: str
    cache: str | None = None
    mixtures: dict[str, NonNegative] | None = None
    mixture: str | None = None
    curriculum: dict[str, dict[str, NonNegative]] | None = None
    batch_size: PositiveInt
    epoch_size: PositiveInt | None = None
    input_length: PositiveInt | None = None
    target_length: PositiveInt | None = None
    workers: NonNegativeInt = 0

    def check(self) -> None:
        """At least one mixture has weight, in one way of saying so."""
        self._check_curriculum()
        if self.mixtures is None:
            return
        if self.mixture is not None:
            raise unexpected(("mixture",), self.mixture, "null beside data.mixtures, or that null")
        total = sum(self.mixtures.values())
        if not total > 0:
            raise unexpected(("mixtures",), self.mixtures, "at least one positive weight")
        if math.isinf(total):
            raise unexpected(("mixtures",), self.mixtures, "weights with a finite sum")

    def _check_curriculum(self) -> None:
        if self.curriculum is None:
            return
        if self.mixture is None:
            raise InvalidValueError(
                ("curriculum",),
                "expected null without data.mixture, whose sub-mixtures it weighs anew",
            )
        begins: dict[int, str] = {}
        for key, weights in self.curriculum.items():
            if _EXAMPLES.fullmatch(key) is None:
                raise InvalidValueError(
                    ("curriculum", key), "expected a number of examples such as '3200sp' as key"
                )
            if not weights:
                raise unexpected(("curriculum", key), weights, "the weight of some sub-mixture")
            if examples(key) in begins:
                raise InvalidValueError(
                    ("curriculum", key), f"the same number as {begins[examples(key)]!r}"
                )
            begins[examples(key)] = key


@dataclass(frozen=True, kw_only=True)
class AdamW(Validated):
    """Decoupled weight decay Adam, `torch.optim.AdamW`.

    Attributes:
        lr: Peak learning rate.
        betas: Decay of the first and second moment.
        eps: Added to the denominator.
        weight_decay: Decoupled; not applied to norms, biases and position biases.
    """

    name: Literal["adamw"] = "adamw"
    lr: Positive
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0


@dataclass(frozen=True, kw_only=True)
class Adafactor(Validated):
    """Adafactor as T5X runs it: no momentum, no relative step (`flan_moe.train.adafactor`).

    Attributes:
        lr: Peak learning rate; multiplied by each weight matrix's root mean square where
            ``scale_parameter`` holds.
        decay: Exponent of the second moment's decay, ``beta2(t) = 1 - t**-decay``.
        clip_threshold: Root mean square to which an update is clipped, per matrix.
        scale_parameter: Take steps relative to the weight's own scale.
        min_dim_size_to_factor: Shortest side of a matrix, lone or one expert of a stack, whose
            second moment is factored (T5X's name and default).
        weight_decay: Decoupled; not applied to norms, biases and position biases.
    """

    name: Literal["adafactor"] = "adafactor"
    lr: Positive
    decay: Positive = 0.8
    clip_threshold: Positive = 1.0
    scale_parameter: bool = True
    min_dim_size_to_factor: PositiveInt = 128
    weight_decay: NonNegative = 0.0


@dataclass(frozen=True, kw_only=True)
class Constant(Validated):
    """Linear warm-up, then constant."""

    name: Literal["constant"] = "constant"
    warmup: Duration | None = None


@dataclass(frozen=True, kw_only=True)
class Linear(Validated):
    """Linear warm-up, then linear decay to ``final`` of the peak at the end of training."""

    name: Literal["linear"] = "linear"
    warmup: Duration | None = None
    final: Fraction = 0.0


@dataclass(frozen=True, kw_only=True)
class Cosine(Validated):
    """Linear warm-up, then half a cosine down to ``final`` of the peak at the end of training."""

    name: Literal["cosine"] = "cosine"
    warmup: Duration | None = None
    final: Fraction = 0.0


@dataclass(frozen=True, kw_only=True)
class InverseSquareRoot(Validated):
    """Linear warm-up to the peak at ``warmup``, then ``sqrt(warmup / t)`` of it."""

    name: Literal["inverse_sqrt"] = "inverse_sqrt"
    warmup: Duration


@dataclass(frozen=True, kw_only=True)
class TrainingSection(Validated):
    """The loop.

    Attributes:
        duration: How long to train.
        microbatch_rows: Packed rows per forward and backward pass; gradients of a batch's
            microbatches are accumulated. Validation batches are divided likewise. Default: the
            whole batch at once.
        gradient_clip: Largest global gradient norm; default: no clipping.
        precision: ``fp32`` or, on a GPU, ``amp_bf16``.
        device: ``auto`` takes the GPU where there is one.
        deterministic: Refuse torch operations without a deterministic implementation. On a CPU
            runs repeat bit for bit without it.
    """

    duration: Duration
    microbatch_rows: PositiveInt | None = None
    gradient_clip: Positive | None = None
    precision: Literal["fp32", "amp_bf16"] = "fp32"
    device: Literal["auto", "cpu", "gpu"] = "auto"
    deterministic: bool = False


@dataclass(frozen=True, kw_only=True)
class EvaluationSection(Validated):
    """Validation loss and token accuracy of each mixture, during training.

    Attributes:
        interval: How often; default: never.
        examples: Validation examples per mixture, the same ones each time.
    """

    interval: Duration | None = None
    examples: PositiveInt = 256


@dataclass(frozen=True, kw_only=True)
class CheckpointSection(Validated):
    """What survives an interruption.

    Attributes:
        interval: How often the whole training state is saved; it is saved at the end as well.
        keep: How many of the newest checkpoints stay on disk.
        autoresume: Continue a run that its folder already holds. If false, such a folder is
            refused.
    """

    interval: Duration
    keep: PositiveInt = 2
    autoresume: bool = True


@dataclass(frozen=True, kw_only=True)
class LoggingSection(Validated):
    """What is written down, besides ``metrics.jsonl`` in the run folder.

    Attributes:
        progress_every: Batches between two lines on the console; 0: none.
        router_every: Batches between two measurements of the routers; 0: none.
        tensorboard: Also write TensorBoard event files (needs the ``tensorboard`` package).
    """

    progress_every: NonNegativeInt = 10
    router_every: NonNegativeInt = 10
    tensorboard: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe(Validated):
    """One training run, completely."""

    name: Name
    seed: Seed = 17
    model: ModelSection
    data: DataSection
    optimizer: AdamW | Adafactor
    schedule: Constant | Linear | Cosine | InverseSquareRoot = field(default_factory=Constant)
    training: TrainingSection
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    checkpoint: CheckpointSection
    logging: LoggingSection = field(default_factory=LoggingSection)

    def check(self) -> None:
        """Conditions across sections that need nothing from disk."""
        warmup, duration = self.schedule.warmup, self.training.duration
        if warmup is not None:
            (steps, unit), (total, total_unit) = amount(warmup), amount(duration)
            key = ("schedule", "warmup")
            if unit != total_unit:
                raise unexpected(key, warmup, f"the unit of training.duration ({duration})")
            if steps > total:
                raise unexpected(key, warmup, f"no more than training.duration ({duration})")


def examples(number: str) -> int:
    """``"3_200sp"`` is 3200."""
    return int(number.removesuffix("sp"))


def amount(duration: str) -> tuple[int, str]:
    """Number and unit of a duration: ``"600ba"`` is ``(600, "ba")``."""
    number, unit = re.fullmatch(r"([0-9_]+)([a-z]+)", duration).groups()  # type: ignore[union-attr]
    return int(number), unit
