"""Wordings of inverted chain-of-thought problems: what was given is asked for."""

from flan_moe.data.forms.wordings.wordings import Wordings

QUESTION_FROM_REASONING = Wordings(
    zero_shot=(
        "Answer: {answer}\nReasoning: {rationale}\nWhat was the question?",
        "{rationale} So the answer is {answer}.\nWrite the question that this answers.",
        "Make up an exam question with this solution.\n{rationale}\nResult: {answer}",
        "The reply was {answer}, because: {rationale}\nQuestion:",
        "Somebody explained: {rationale}\nand concluded: {answer}\nWhat had they been asked?",
        "Recover the question.\nExplanation: {rationale}\nAnswer: {answer}",
    ),
    few_shot=(
        "{rationale}\n{answer}",
        "Reasoning: {rationale}\nAnswer: {answer}",
        "{answer}, because: {rationale}",
        "Solution: {rationale} So {answer}.",
        "To this fits which question? {rationale} ({answer})",
        "Result {answer}; steps: {rationale}",
    ),
)

REASONING_FROM_ANSWER = Wordings(
    zero_shot=(
        "{question}\nThe answer is {answer}. Why?",
        "Question: {question}\nAnswer: {answer}\nExplain how one gets there.",
        "Explain why the answer to this question is {answer}.\n{question}",
        "{question}\n\nI was told {answer}. Give the reasoning behind it.",
        "Justify the answer.\nQ: {question}\nA: {answer}\nJustification:",
        "Write the steps that lead from the question to {answer}.\n{question}",
    ),
    few_shot=(
        "{question}\n{answer}",
        "Question: {question}\nAnswer: {answer}",
        "{question} Why {answer}?",
        "Explain {answer}: {question}",
        "Q: {question} ({answer})",
        "{question}\nKnown result: {answer}",
    ),
)

PROBLEM_FROM_REASONING = Wordings(
    zero_shot=(
        "{rationale}\nWhich question and answer belong to this reasoning?",
        "Reasoning: {rationale}\nWrite the question it solves and the answer.",
        "Here is an explanation without its problem.\n{rationale}\nProblem and answer:",
        "From this train of thought, make a question and give its answer.\n{rationale}",
        "{rationale}\n\nWhat was asked, and what is the answer?",
        "Invent the exercise that this solves, with its result: {rationale}",
    ),
    few_shot=(
        "{rationale}",
        "Reasoning: {rationale}",
        "Explanation: {rationale}",
        "Steps: {rationale}",
        "What does this solve? {rationale}",
        "Thought: {rationale}",
    ),
)
