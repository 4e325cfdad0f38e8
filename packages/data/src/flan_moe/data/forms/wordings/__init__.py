"""Wordings by kind of problem; all of them are this project's own."""

from collections.abc import Mapping
from types import MappingProxyType

from flan_moe.data.forms.wordings import choices, code, labels, pairs, plain, reading
from flan_moe.data.forms.wordings.wordings import Wordings

# Kind of problem, then its wordings. The places of the wordings are the fields of such a problem.
WORDINGS: Mapping[str, Wordings] = MappingProxyType(
    {
        "question_choice": choices.QUESTION_CHOICE,
        "goal_choice": choices.GOAL_CHOICE,
        "blank_choice": choices.BLANK_CHOICE,
        "cause_effect": choices.CAUSE_EFFECT,
        "entailment": pairs.ENTAILMENT,
        "paraphrase": pairs.PARAPHRASE,
        "word_sense": pairs.WORD_SENSE,
        "yes_no_passage": reading.YES_NO_PASSAGE,
        "candidate_answer": reading.CANDIDATE_ANSWER,
        "passage_question": reading.PASSAGE_QUESTION,
        "sentiment": labels.SENTIMENT,
        "topic": labels.TOPIC,
        "repair": code.REPAIR,
        "repair_with_message": code.REPAIR_WITH_MESSAGE,
        "repair_line": code.REPAIR_LINE,
        "question": plain.QUESTION,
        "rendered": plain.RENDERED,
    }
)

__all__ = ["WORDINGS", "Wordings"]
