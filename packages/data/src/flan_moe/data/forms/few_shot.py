"""How solved exemplars and the question are laid out in one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flan_moe.data.prompts import few_shot_prompt


@dataclass(frozen=True, kw_only=True)
class FewShotPattern:
    """Prefixes and separators around the (prompt, target) blocks.

    Attributes:
        head: Before everything.
        asks: Before each prompt.
        delimiter: Between prompt and target.
        answers: Before each target.
        separator: Between blocks.
        tail: After the question, whose target is missing.
    """

    head: str = ""
    asks: str = ""
    delimiter: str = "\n"
    answers: str = ""
    separator: str = "\n\n"
    tail: str = ""

    def prompt(self, exemplars: Sequence[tuple[str, str]], question: str) -> str:
        """The exemplars and then the question."""
        blocks = [
            f"{self.asks}{shown}{self.delimiter}{self.answers}{target}"
            for shown, target in exemplars
        ]
        last = f"{self.asks}{question}{self.delimiter}{self.answers}".rstrip()
        return self.head + self.separator.join([*blocks, last]) + self.tail


# Index 0 of the template's name is the suite's own layout, `flan_moe.data.prompts.few_shot_prompt`;
# these are the others.
PATTERNS: tuple[FewShotPattern, ...] = (
    FewShotPattern(asks="Question: ", answers="Answer: "),
    FewShotPattern(asks="Q: ", answers="A: ", separator="\n\n\n"),
    FewShotPattern(asks="Input: ", answers="Output: "),
    FewShotPattern(delimiter="\n\n", answers="Answer: ", separator="\n\n\n"),
    FewShotPattern(asks="Problem: ", answers="Solution: ", separator="\n---\n"),
    FewShotPattern(head="Here are some examples.\n\n", asks="[in] ", answers="[out] "),
    FewShotPattern(asks="### Task\n", answers="### Result\n"),
    FewShotPattern(delimiter=" => ", separator="\n"),
    FewShotPattern(asks="Example:\n", answers="Response: ", separator="\n\n"),
    FewShotPattern(delimiter="\n\n", separator="\n\n\n\n"),
    FewShotPattern(
        head="Continue in the same way.\n\n", delimiter="\nThe right answer: ", separator="\n\n"
    ),
    FewShotPattern(asks="Student: ", answers="Teacher: ", separator="\n\n"),
)

__all__ = ["PATTERNS", "FewShotPattern", "few_shot_prompt"]
