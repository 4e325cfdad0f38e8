"""Draws the form of each example, picks its exemplars and keeps the record of what it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Generic, TypeVar

from flan_moe.data.example import Example
from flan_moe.data.forms.few_shot import PATTERNS, few_shot_prompt
from flan_moe.data.forms.length_budget import LengthBudget
from flan_moe.data.forms.options import FIXED, OptionStyle, drawn_style
from flan_moe.data.forms.shares import MINI_SHARES, FormShares
from flan_moe.data.forms.style import Style
from flan_moe.data.prompts import COT_CUE, cot_prompt, cot_target
from flan_moe.data.template_types import FS_NOOPT, FS_OPT, ZS_NOOPT, ZS_OPT

P = TypeVar("P")

# The prompt of a problem with solved examples under the one definition, and those examples, given
# the exemplars that were drawn. No examples: the form cannot be had.
UnderDefinition = Callable[[P, int, Sequence[P]], tuple[str, Sequence[P]]]

_ZERO_SHOT = {FS_OPT: ZS_OPT, FS_NOOPT: ZS_NOOPT}  # what a prompt becomes if no exemplar fits


@dataclass(frozen=True, kw_only=True)
class Forms(Generic[P]):
    """How the problems of one task become training examples.

    Attributes:
        task: Name of the task.
        mixture: Name of its mixture.
        templates: Number of wordings; examples take them in turn.
        key: The bare problem, without any wording. Equal for problems that give each other away;
            such are never shown together.
        prompt: The zero-shot prompt of a problem in a wording, as an evaluation suite asks it.
        answer: The answer of a problem.
        rationale: Its reasoning, or None; consulted for tasks with ``cot``.
        cot: Whether the task's problems have rationales.
        cues: Lines that ask for reasoning.
        options: What the answer of a problem is chosen from, or None.
        worded: The prompt of a problem in any other style, reasoning apart; None: the task has only
            the suite's.
        under_definition: For tasks with a definition: name of a form, then what makes its prompts.
        shares: How often each form is taken.
    """

    task: str
    mixture: str
    templates: int
    key: Callable[[P], str]
    prompt: Callable[[P, int], str]
    answer: Callable[[P], str]
    rationale: Callable[[P], str | None] = field(default=lambda problem: None)
    cot: bool = False
    cues: Sequence[str] = (COT_CUE,)
    options: Callable[[P], Sequence[str] | None] = field(default=lambda problem: None)
    worded: Callable[[P, Style], str] | None = None
    under_definition: Mapping[str, UnderDefinition] = field(default_factory=dict)
    shares: FormShares = MINI_SHARES

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
        budget, start = LengthBudget(fits), Random(seed).random()
        for index, problem in enumerate(problems):
            setting = self.shares.setting(index, start)
            rng = Random(f"{seed}/{index}")
            yield self._example(problem, problems, index % self.templates, setting, rng, budget)

    def _example(
        self,
        problem: P,
        pool: Sequence[P],
        template: int,
        setting: str,
        rng: Random,
        budget: LengthBudget,
    ) -> Example:
        few_shot = setting in _ZERO_SHOT
        exemplars = self._draw(problem, pool, rng) if few_shot else []
        style = self._style([problem, *exemplars], template, setting, rng)
        form, shown = "zero_shot", [(problem, template)]
        prompt, target = self._solved(problem, style)
        found = None
        if exemplars and self.under_definition and rng.random() < self.shares.under_definition:
            form = rng.choice(sorted(self.under_definition))
            found = budget.first_fit(self._defined(form, problem, template, exemplars))
        elif exemplars and (self.worded is None or rng.random() < self.shares.suite_layout):
            form, style = "few_shot", replace(style, options=style.options and FIXED)
            prompt, target = self._solved(problem, style)
            blocks = [(exemplar, rng.randrange(self.templates)) for exemplar in exemplars]
            found = budget.first_fit(self._suite_prompts(prompt, blocks, style))
        elif exemplars:
            number = rng.randrange(len(PATTERNS))
            form, style = f"pattern_{number}", replace(style, brief=True)
            found = budget.first_fit(self._pattern_prompts(number, problem, exemplars, style))
        if found is not None:
            prompt, blocks = found
            shown += blocks
        else:
            form, setting = "zero_shot", _ZERO_SHOT.get(setting, setting)
        return Example(
            task=self.task,
            mixture=self.mixture,
            template=f"{setting}/{form}{'_cot' if style.cue else ''}/{template}",
            prompt=prompt,
            target=target,
            meta={
                "shown": [self.prompt(*one) for one in shown],
                "problems": [self.key(one) for one, _ in shown],
            },
        )

    def _draw(self, problem: P, pool: Sequence[P], rng: Random) -> list[P]:
        """Some other problems; a draw that meets the same one again is left out."""
        shots = self.shares.shots
        count = shots if rng.random() < self.shares.full else rng.randint(1, shots)
        kept, keys = [], {self.key(problem)}
        for _ in range(count):
            exemplar = rng.choice(pool)
            if self.key(exemplar) not in keys:
                keys.add(self.key(exemplar))
                kept.append(exemplar)
        return kept

    def _style(self, problems: Sequence[P], template: int, setting: str, rng: Random) -> Style:
        cue = None
        if self.cot and rng.random() < self.shares.reasons:
            # The suite's own cue is by far the most frequent one.
            cue = self.cues[0] if rng.random() < 0.5 else rng.choice(self.cues)
        options: OptionStyle | None = FIXED
        if setting in (ZS_NOOPT, FS_NOOPT):
            options = None
        elif self.worded is not None and rng.random() >= self.shares.fixed_options:
            count = max(len(self.options(problem) or ()) for problem in problems)
            options = drawn_style(rng, count)
        return Style(template=template, options=options, cue=cue)

    def _solved(self, problem: P, style: Style) -> tuple[str, str]:
        if self.worded is None or (style.options == FIXED and not style.brief):
            prompt = self.prompt(problem, style.template)
        else:
            prompt = self.worded(problem, style)
        answer = self.answer(problem)
        if style.options is not None:
            answer = style.options.target(answer, self.options(problem))
        rationale = self.rationale(problem) if style.cue is not None else None
        if rationale is None or style.cue is None:
            return prompt, answer
        return cot_prompt(prompt, style.cue), cot_target(rationale, answer)

    def _defined(
        self, form: str, problem: P, template: int, exemplars: Sequence[P]
    ) -> Iterator[tuple[str, list[tuple[P, int]]]]:
        for count in range(len(exemplars), 0, -1):
            text, examples = self.under_definition[form](problem, template, exemplars[:count])
            if examples:
                yield text, [(example, template) for example in examples]

    def _suite_prompts(
        self, prompt: str, blocks: Sequence[tuple[P, int]], style: Style
    ) -> Iterator[tuple[str, list[tuple[P, int]]]]:
        solved = [self._solved(one, replace(style, template=number)) for one, number in blocks]
        for count in range(len(blocks), 0, -1):
            yield few_shot_prompt(solved[:count], prompt), list(blocks[:count])

    def _pattern_prompts(
        self, number: int, problem: P, exemplars: Sequence[P], style: Style
    ) -> Iterator[tuple[str, list[tuple[P, int]]]]:
        question, _ = self._solved(problem, style)
        solved = [self._solved(exemplar, style) for exemplar in exemplars]
        for count in range(len(exemplars), 0, -1):
            shown = [(exemplar, style.template) for exemplar in exemplars[:count]]
            yield PATTERNS[number].prompt(solved[:count], question), shown
