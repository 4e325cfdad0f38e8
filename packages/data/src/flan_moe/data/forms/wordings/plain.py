"""Wordings of problems that are one text already."""

from flan_moe.data.forms.wordings.wordings import Wordings
from flan_moe.data.prompts import QUESTION_LAYOUTS

QUESTION = Wordings(
    zero_shot=QUESTION_LAYOUTS,
    few_shot=(
        "{question}",
        "Question: {question}",
        "Please answer: {question}",
        "Item: {question}",
        "Asked: {question}",
        "Problem: {question}",
        "Consider: {question}",
        "({question})",
        "To solve: {question}",
        "Exercise. {question}",
    ),
)

# Prompts that somebody else has worded, as promptsource templates do.
RENDERED = Wordings(
    zero_shot=(
        "{text}\n{options}",
        "{text}\n\n{options}\n\nAnswer:",
        "Question:\n{text}\n{options}\nAnswer:",
        "Q: {text}\n{options}\nA:",
        "Please answer.\n{text}\n{options}",
        "{text}\n{options}\nWhat do you reply?",
        "Respond to this.\n\n{text}\n\n{options}",
        "Task: {text}\n{options}\nResult:",
        "Given is the following.\n{text}\n{options}\nThe answer:",
        "Write the answer to: {text}\n{options}",
    ),
    few_shot=(
        "{text}\n{options}",
        "{text}\n\n{options}",
        "Task: {text}\n{options}",
        "Given: {text}\n{options}",
        "To answer:\n{text}\n{options}",
        "Prompt: {text}\n{options}",
        "Item: {text}\n{options}",
        "[{text}]\n{options}",
        "Next: {text}\n{options}",
        "Exercise. {text}\n{options}",
    ),
)
