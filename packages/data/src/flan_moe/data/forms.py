"""Which form each training example takes: zero- or few-shot, direct or with its reasoning.

The same for generated and for real tasks. A task says how one problem is worded; this module draws
the form, picks the exemplars and keeps the record of what a prompt shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Generic, TypeVar

from flan_moe.data.example import Example
from flan_moe.data.prompts import cot_prompt, cot_target, few_shot_prompt
from flan_moe.data.template_types import FS_OPT, ZS_OPT

P = TypeVar("P")

FEW_SHOT_SHARE = 0.25  # of all examples; the rest is zero-shot
COT_SHARE = 2 / 3  # of the examples of a task with rationales; the rest answers at once
UNDER_DEFINITION_SHARE = 0.5  # of few-shot examples of a task with a definition
MAX_SHOTS = 2


@dataclass(frozen=True, kw_only=True)
class Forms(Generic[P]):
    """How the problems of one task become training examples.

    Attributes:
        task: Name of the task.
        mixture: Name of its mixture.
        templates: Number of wordings; examples take them in turn.
        key: The bare problem, without any wording. Equal for problems that give each other away;
            such are never shown together.
        prompt: The zero-shot prompt of a problem in a wording.
        answer: The answer of a problem.
        rationale: Its reasoning, or None; consulted for tasks with ``cot``.
        cot: Whether the task's problems have rationales.
        under_definition: For tasks with a definition: the prompt of a problem with solved examples
            under the one definition, and those examples, given the exemplars that were drawn. No
            examples: the form cannot be had.
    """

    task: str
    mixture: str
    templates: int
    key: Callable[[P], str]
    prompt: Callable[[P, int], str]
    answer: Callable[[P], str]
    rationale: Callable[[P], str | None] = field(default=lambda problem: None)
    cot: bool = False
    under_definition: Callable[[P, int, Sequence[P]], tuple[str, Sequence[P]]] | None = None

    def examples(
        self, problems: Sequence[P], *, seed: str, fits: Callable[[str], bool]
    ) -> Iterator[Example]:
        """One example for each problem; exemplars are drawn from the same problems.

        Args:
            problems: In the order of the examples.
            seed: Of the forms and exemplars.
            fits: Whether a few-shot prompt is short enough; exemplars are dropped from the end
                until it is.
        """
        for index, problem in enumerate(problems):
            yield self._example(problem, problems, index, Random(f"{seed}/{index}"), fits)

    def _example(
        self,
        problem: P,
        pool: Sequence[P],
        index: int,
        rng: Random,
        fits: Callable[[str], bool],
    ) -> Example:
        template = index % self.templates
        reasons = self.cot and rng.random() < COT_SHARE
        exemplars = self._draw(problem, pool, rng) if rng.random() < FEW_SHOT_SHARE else []
        prompt, target = self._solved(problem, template, reasons)
        form, shown = "zero_shot", [(problem, template)]
        if exemplars and self.under_definition and rng.random() < UNDER_DEFINITION_SHARE:
            text, examples = self.under_definition(problem, template, exemplars)
            if examples and fits(text):
                prompt, form = text, "definition_examples"
                shown += [(example, template) for example in examples]
        else:
            blocks = [(exemplar, rng.randrange(self.templates)) for exemplar in exemplars]
            while blocks:
                text = few_shot_prompt([self._solved(*b, reasons) for b in blocks], prompt)
                if fits(text):
                    prompt, form = text, "few_shot"
                    shown += blocks
                    break
                blocks.pop()
        kind = ZS_OPT if form == "zero_shot" else FS_OPT
        return Example(
            task=self.task,
            mixture=self.mixture,
            template=f"{kind}/{form}{'_cot' if reasons else ''}/{template}",
            prompt=prompt,
            target=target,
            meta={
                "shown": [self.prompt(*one) for one in shown],
                "problems": [self.key(problem) for problem, _ in shown],
            },
        )

    def _draw(self, problem: P, pool: Sequence[P], rng: Random) -> list[P]:
        """One to `MAX_SHOTS` other problems; a draw that meets the same one again is left out."""
        kept, keys = [], {self.key(problem)}
        for _ in range(rng.randint(1, MAX_SHOTS)):
            exemplar = rng.choice(pool)
            if self.key(exemplar) not in keys:
                keys.add(self.key(exemplar))
                kept.append(exemplar)
        return kept

    def _solved(self, problem: P, template: int, reasons: bool) -> tuple[str, str]:
        prompt, answer = self.prompt(problem, template), self.answer(problem)
        rationale = self.rationale(problem) if reasons else None
        if rationale is None:
            return prompt, answer
        return cot_prompt(prompt), cot_target(rationale, answer)
