"""What a task family is: a name, a few wordings and one generator of solved instances."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Literal, get_args

from flan_moe.data.prompts import definition_prompt, fill, with_options

Kind = Literal["generate", "multiple_choice"]
Split = Literal["train", "validation", "eval"]
MIXTURES = ("muffin", "t0_sf", "niv2", "cot")

# An instance belongs to the split that its own content hashes to (percent of the space, the rest is
# train). Two seeds, or two draws, that meet in the same instance therefore agree on its split.
_HELD_BACK = {"validation": 10, "eval": 10}


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One solved problem, independent of how it is worded.

    Attributes:
        fields: Values for the places of a template.
        answer: The exact answer.
        options: Answers to choose from, in the order shown; None for a free answer.
        rationale: Reasoning that leads to the answer; None outside the chain-of-thought mixture.
    """

    fields: Mapping[str, str]
    answer: str
    options: tuple[str, ...] | None = None
    rationale: str | None = None

    def content(self) -> str:
        """Canonical text of the problem; equal problems have equal texts."""
        options = sorted(self.options or ())
        return json.dumps([sorted(self.fields.items()), options], ensure_ascii=False)

    def split(self) -> Split:
        """The one split this problem may appear in."""
        percent = int.from_bytes(hashlib.sha256(self.content().encode()).digest()[:4], "big") % 100
        for name, share in _HELD_BACK.items():
            if percent < share:
                return name
            percent -= share
        return "train"


@dataclass(frozen=True, kw_only=True)
class Family:
    """A procedurally generated task.

    Attributes:
        name: Unique among all families.
        mixture: The Flan mixture in whose manner the task is written.
        cluster: What is asked, as in the task clusters of FLAN: families of one cluster differ in
            their problems or wordings. Skills and words may be shared by clusters.
        kind: Whether answers are free text or one of the shown options.
        templates: At least four wordings. In the ``niv2`` mixture a template is a task definition
            and the instance's ``input`` follows it; elsewhere it is the whole prompt.
        generate: Draws one instance; everything random comes from the generator it is given.
        held_out: Kept out of training, for evaluation.
        chance: Score of the best guess that does not solve the problem: always the same answer, or
            a candidate that the prompt names, chosen by its place or by how often it is there.
    """

    name: str
    mixture: str
    cluster: str
    kind: Kind
    templates: tuple[str, ...]
    generate: Callable[[Random], Instance] = field(repr=False)
    held_out: bool = False
    chance: float = 0.0

    def __post_init__(self) -> None:
        """Check the declaration itself.

        Raises:
            ValueError: A value is outside what the attribute's description allows.
        """
        if self.mixture not in MIXTURES:
            raise ValueError(
                f"{self.name}: mixture is {self.mixture!r}; expected one of {MIXTURES}"
            )
        if self.kind not in get_args(Kind):
            raise ValueError(
                f"{self.name}: kind is {self.kind!r}; expected one of {get_args(Kind)}"
            )
        if len(set(self.templates)) < 4:
            raise ValueError(
                f"{self.name}: {len(set(self.templates))} templates; expected 4 or more"
            )
        if not 0 <= self.chance < 1 or (self.kind == "multiple_choice" and not self.chance):
            raise ValueError(f"{self.name}: chance is {self.chance} for kind {self.kind!r}")

    @property
    def cot(self) -> bool:
        """Whether instances carry a rationale."""
        return self.mixture == "cot"

    def instance(self, index: int, *, seed: int, split: Split) -> Instance:
        """Instance ``index`` of the endless stream of ``split`` under ``seed``.

        A pure function of its arguments. The streams of two splits never share a problem.
        """
        rng = Random(f"{seed}/{self.name}/{split}/{index}")
        while True:
            instance = self.generate(rng)
            if instance.split() == split:
                return instance

    def instances(self, *, seed: int, split: Split) -> Iterator[Instance]:
        """The endless stream itself."""
        index = 0
        while True:
            yield self.instance(index, seed=seed, split=split)
            index += 1

    def prompt(self, instance: Instance, template: int, examples: tuple[Instance, ...] = ()) -> str:
        """The zero-shot prompt in one wording; ``niv2`` families may show solved examples in it.

        Args:
            instance: The problem.
            template: Index of the wording, taken modulo their number.
            examples: Solved problems to show under the definition.

        Raises:
            ValueError: Examples are given for a family without a definition.
        """
        wording = self.templates[template % len(self.templates)]
        if self.mixture == "niv2":
            return definition_prompt(
                fill(wording, instance.fields),
                instance.fields["input"],
                [(example.fields["input"], example.answer) for example in examples],
                layout=template,
            )
        if examples:
            raise ValueError(f"{self.name}: only niv2 families show examples under a definition")
        return with_options(fill(wording, instance.fields), instance.options)
