"""Wordings of questions about a passage."""

from flan_moe.data.forms.wordings.wordings import Wordings

YES_NO_PASSAGE = Wordings(
    zero_shot=(
        "{passage}\n{question}\n{options}",
        "Passage: {passage}\nQuestion: {question}\n{options}\nAnswer:",
        "Read this and answer yes or no.\n\n{passage}\n\n{question}\n\n{options}",
        "{passage}\n\nAccording to the text: {question}\n{options}",
        "Question: {question}\nLook it up here: {passage}\n{options}",
        "I wonder: {question}\nHere is what I found.\n{passage}\n{options}\nSo the reply is",
        "Use the passage to decide.\n{passage}\nQ: {question}\n{options}\nA:",
        "Text: {passage}\n\nWhat does it say on this? {question}\n{options}",
        "{question}\n\n{passage}\n\n{options}",
        "Based on the paragraph below, {question}\n{passage}\n{options}",
    ),
    few_shot=(
        "{passage}\n{question}\n{options}",
        "Passage: {passage}\n{question}\n{options}",
        "{question}\n{passage}\n{options}",
        "Text: {passage}\n\nAsked: {question}\n{options}",
        "{passage}\n\n{question}\n\n{options}",
        "Paragraph: {passage}\nYes or no: {question}\n{options}",
        "Source: {passage}\nIs it so? {question}\n{options}",
        "Background: {passage}\n{question}\n{options}",
        "Given {passage}\nwe ask: {question}\n{options}",
        "Article: {passage}\nReader: {question}\n{options}",
    ),
)

CANDIDATE_ANSWER = Wordings(
    zero_shot=(
        '{passage}\n{question}\nIs "{candidate}" a right answer?\n{options}',
        "Passage: {passage}\nQuestion: {question}\nProposed answer: {candidate}\n{options}\n"
        "Verdict:",
        "Read the text and check the answer.\n\n{passage}\n\n{question}\n{candidate}\n\n{options}",
        'A student read this: {passage}\nAsked "{question}", the student said: {candidate}\n'
        "Is that right?\n{options}",
        "{passage}\n\nQ: {question}\nA: {candidate}\n\nDoes the text bear this answer out?\n"
        "{options}",
        'Does "{candidate}" answer the question "{question}" for this text?\n{passage}\n{options}',
        "Grade the reply.\nText: {passage}\nQuestion: {question}\nReply: {candidate}\n{options}",
        "{question} {candidate}?\nDecide with this passage: {passage}\n{options}",
        "Text: {passage}\n\n{question}\nOne answer is {candidate}. Correct?\n{options}",
        "True or not? The answer to {question} is {candidate}.\n{passage}\n{options}",
    ),
    few_shot=(
        "{passage}\n{question}\n{candidate}\n{options}",
        "Passage: {passage}\nQuestion: {question}\nProposed: {candidate}\n{options}",
        "{passage}\n\n{question} {candidate}?\n{options}",
        "Text: {passage}\nQ: {question}\nReply: {candidate}\n{options}",
        "{question}\nMaybe {candidate}.\n{passage}\n{options}",
        "Paragraph: {passage}\n{question}\nStudent: {candidate}\n\n{options}",
        "{passage}\nCheck this: {question} {candidate}\n{options}",
        "Source: {passage}\nAsked: {question}\nClaimed: {candidate}\n{options}",
        "{passage}\n{question}\nIs it {candidate}?\n{options}",
        "Is this right? {question} {candidate}\nSee: {passage}\n{options}",
    ),
)

PASSAGE_QUESTION = Wordings(
    zero_shot=(
        "{passage}\n{question}",
        "Passage: {passage}\nQuestion: {question}\nAnswer:",
        "Answer with words from the text.\n\n{passage}\n\n{question}",
        "{passage}\n\nWhat does the text say: {question}",
        "Question: {question}\nThe answer is in here: {passage}\nAnswer:",
        "Read the paragraph, then answer.\nParagraph: {passage}\n{question}",
        "{question}\n\nLook for it in this text.\n{passage}",
        "Extract the answer to the question from the passage.\nQuestion: {question}\n"
        "Passage: {passage}",
        "Text: {passage}\n\nQ: {question}\nA:",
        "Find out from this article: {question}\n\n{passage}",
    ),
    few_shot=(
        "{passage}\n{question}",
        "Passage: {passage}\n{question}",
        "{question}\n{passage}",
        "Text: {passage}\n\n{question}",
        "Find: {question}\nIn: {passage}",
        "Paragraph: {passage}\nAsked: {question}",
        "Background: {passage}\n\nQuestion on it: {question}",
        "{passage}\n\n{question}",
        "Article: {passage}\nReader: {question}",
        "{question}\nSource: {passage}",
    ),
)
