"""Wordings of questions whose answers are sentences to choose from."""

from flan_moe.data.forms.wordings.wordings import Wordings

QUESTION_CHOICE = Wordings(
    zero_shot=(
        "{question}\n{options}",
        "Question: {question}\n{options}\nAnswer:",
        "Answer the following question.\n\n{question}\n\n{options}",
        "{question}\n\n{options}\n\nWhat is the right answer?",
        "Here is a question from an exam.\n{question}\n{options}\nThe correct answer is",
        "What would you answer here?\n{question}\n{options}",
        "Solve this question: {question}\n{options}",
        "Q: {question}\n{options}\nA:",
        "A teacher asks: {question}\n{options}\nWhat should the student say?",
        "{question}\n{options}\nGive the best answer.",
    ),
    few_shot=(
        "{question}\n{options}",
        "{question}\n\n{options}",
        "Exam question: {question}\n{options}",
        "{question} What is right?\n{options}",
        "Please answer. {question}\n{options}",
        "({question})\n{options}",
        '"{question}"\n{options}',
        "Answer this: {question}\n{options}",
        "{question}\n{options}\nBest answer?",
        "Topic: science and common sense\n{question}\n{options}",
    ),
)

GOAL_CHOICE = Wordings(
    zero_shot=(
        "How does one do this? {goal}\n{options}",
        "Goal: {goal}\n{options}\nSolution:",
        "{goal}\n\n{options}\n\nWhat works better?",
        "Somebody wants to know: {goal}\n{options}\nWhat do you advise?",
        "Find the sensible solution.\n{goal}\n{options}",
        "Task of daily life: {goal}\n{options}\nThe way to do it is",
        "{goal}\nWhat is the best way?\n{options}",
        "Give practical advice.\n\n{goal}\n\n{options}",
        "Here is what I want to achieve: {goal}\n{options}\nHow do I go about it?",
        "Complete the instructions for: {goal}\n{options}",
    ),
    few_shot=(
        "{goal}\n{options}",
        "Goal: {goal}\n{options}",
        "Aim: {goal}\n\n{options}",
        "What works for this? {goal}\n{options}",
        "To do: {goal}\n{options}",
        "How to: {goal}\n{options}",
        "{goal}\nHow?\n{options}",
        "Wanted: {goal}\n{options}",
        "Plan: {goal}\n{options}\nBetter way?",
        "Advice for: {goal}\n{options}",
    ),
)

BLANK_CHOICE = Wordings(
    zero_shot=(
        "{sentence}\nWhat belongs in the blank?\n{options}",
        "Fill in the blank: {sentence}\n{options}",
        "Sentence: {sentence}\n{options}\nWho or what does the underscore stand for?",
        "{sentence}\n\n{options}\n\nThe missing words are",
        "What does _ mean in this sentence?\n{sentence}\n{options}",
        "Read the sentence and find what is left out.\n{sentence}\n{options}",
        "Complete the sentence sensibly.\n\n{sentence}\n\n{options}",
        "In the text below a name or thing was replaced by _.\n{sentence}\n{options}\nIt was",
        'Which words make "{sentence}" sensible?\n{options}',
        "{sentence}\n{options}\nBlank:",
    ),
    few_shot=(
        "{sentence}\n{options}",
        "Fill in: {sentence}\n{options}",
        "{sentence}\nWhat is _?\n{options}",
        "Sentence with a gap: {sentence}\n{options}",
        "Gap: {sentence}\n\n{options}",
        '"{sentence}"\n{options}',
        "{sentence} (what is missing?)\n{options}",
        "Complete: {sentence}\n{options}",
        "Text: {sentence}\n{options}\nBlank?",
        "Replace _ in: {sentence}\n{options}",
    ),
)

CAUSE_EFFECT = Wordings(
    zero_shot=(
        "{premise}\nWhat is the {asked} of this?\n{options}",
        "Premise: {premise}\nFind its {asked}.\n{options}",
        "{premise} Tell me the most likely {asked}.\n\n{options}",
        'Which {asked} fits "{premise}"?\n{options}',
        "Think about cause and effect. {premise}\n{options}\nThe {asked} is:",
        "Here is what happened: {premise}\n{options}\nGive the {asked}.",
        "Event: {premise}\nAsked for: the {asked}\n{options}\nAnswer:",
        "{premise}\n\n{options}\n\nName the {asked} that makes more sense.",
        "What is a plausible {asked}? {premise}\n{options}",
        "I know that this is true: {premise} What is the {asked}?\n{options}",
    ),
    few_shot=(
        "{premise} ({asked}?)\n{options}",
        "Event: {premise}\n{asked}?\n{options}",
        "{premise}\nFind the {asked}.\n{options}",
        "Premise: {premise} Wanted: {asked}.\n{options}",
        "What is the {asked}? {premise}\n\n{options}",
        "The {asked} of this: {premise}\n{options}",
        "{premise} What is the {asked}?\n{options}",
        "[{asked}] {premise}\n{options}",
        "Story: {premise}\nLikely {asked}:\n{options}",
        "{premise}\n{options}\nThe {asked}?",
    ),
)
