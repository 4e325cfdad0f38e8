"""Wordings of questions about two texts."""

from flan_moe.data.forms.wordings.wordings import Wordings

ENTAILMENT = Wordings(
    zero_shot=(
        "{premise}\nDoes it follow that {hypothesis}\n{options}",
        "Premise: {premise}\nHypothesis: {hypothesis}\nDoes the hypothesis follow?\n{options}",
        'Suppose that this is true: {premise}\nIs "{hypothesis}" true then?\n{options}',
        "Read the text and say whether the statement is true.\n\nText: {premise}\n\n"
        "Statement: {hypothesis}\n\n{options}",
        "{premise}\n\nFrom this text alone, is the next sentence true?\n{hypothesis}\n{options}",
        "Sentence 1: {premise}\nSentence 2: {hypothesis}\nIs the second sentence true if the "
        "first is?\n{options}",
        "A reporter writes: {premise}\nA reader concludes: {hypothesis}\nIs the reader right?\n"
        "{options}",
        'Is "{hypothesis}" a conclusion from "{premise}"?\n{options}',
        "Given: {premise}\nClaim: {hypothesis}\n{options}\nVerdict:",
        "Does the first text support the second?\n1. {premise}\n2. {hypothesis}\n{options}",
    ),
    few_shot=(
        "{premise}\n{hypothesis}\n{options}",
        "Premise: {premise}\nHypothesis: {hypothesis}\n{options}",
        "Text: {premise}\nStatement: {hypothesis}\n{options}",
        "{premise} So: {hypothesis}\n{options}",
        "Sentence 1: {premise}\nSentence 2: {hypothesis}\n\n{options}",
        "If {premise}\nthen {hypothesis}\n{options}",
        "Known: {premise}\nClaimed: {hypothesis}\n{options}",
        '"{premise}" / "{hypothesis}"\n{options}',
        "Given: {premise}\nConclusion: {hypothesis}\n{options}",
        "{premise}\nTrue then? {hypothesis}\n{options}",
    ),
)

PARAPHRASE = Wordings(
    zero_shot=(
        "{first}\n{second}\nDo these two ask for the same thing?\n{options}",
        "Question 1: {first}\nQuestion 2: {second}\n{options}\nSame meaning?",
        'Would one answer serve both "{first}" and "{second}"?\n{options}',
        "Compare the two texts.\n\n{first}\n\n{second}\n\nAre they duplicates?\n{options}",
        "A forum has this post: {first}\nNow somebody writes: {second}\nIs it a duplicate?\n"
        "{options}",
        "Is the second line another way to say the first?\n{first}\n{second}\n{options}",
        "1) {first}\n2) {second}\n\nDo 1 and 2 mean the same?\n{options}",
        'Can I replace "{first}" by "{second}"?\n{options}',
        "First: {first}\nSecond: {second}\n{options}\nEquivalent:",
        "Decide whether the texts are paraphrases.\n{first}\n{second}\n{options}",
    ),
    few_shot=(
        "{first}\n{second}\n{options}",
        "First: {first}\nSecond: {second}\n{options}",
        "{first} = {second} ?\n{options}",
        "Question 1: {first}\nQuestion 2: {second}\n{options}",
        "Same? {first} / {second}\n{options}",
        "A: {first}\nB: {second}\n\n{options}",
        '"{first}" and "{second}"\n{options}',
        "Old post: {first}\nNew post: {second}\n{options}",
        "1. {first}\n2. {second}\n{options}",
        "{first}\n{second}\nDuplicates?\n{options}",
    ),
)

WORD_SENSE = Wordings(
    zero_shot=(
        '{first}\n{second}\nDoes "{word}" mean the same in both sentences?\n{options}',
        "Word: {word}\nSentence 1: {first}\nSentence 2: {second}\n{options}\nSame sense:",
        'Look at "{word}" in these sentences.\n\n{first}\n\n{second}\n\nIs it used in one sense?\n'
        "{options}",
        '"{word}" can mean many things. Is its meaning here: {first} the same as here: {second}\n'
        "{options}",
        "Compare the use of {word}.\n1. {first}\n2. {second}\n{options}",
        "Would a dictionary list {word} under one entry for these examples?\n{first}\n{second}\n"
        "{options}",
        "{first}\n{second}\n{options}\nOne meaning of {word}?",
        "A learner asks whether {word} is the same in\n(a) {first}\n(b) {second}\nWhat do you "
        "say?\n{options}",
        "Sense of {word}, first use: {first} Second use: {second} Equal?\n{options}",
        'Decide if "{word}" keeps its meaning.\n{first}\n{second}\n{options}',
    ),
    few_shot=(
        "{word}\n{first}\n{second}\n{options}",
        "Word: {word}\n1. {first}\n2. {second}\n{options}",
        "{first}\n{second}\nSame {word}?\n{options}",
        "[{word}] {first} | {second}\n{options}",
        '"{word}": {first} And: {second}\n{options}',
        "{first}\n{second}\n({word})\n{options}",
        "Sense of {word}:\n{first}\n{second}\n\n{options}",
        "Use 1: {first}\nUse 2: {second}\nWord: {word}\n{options}",
        "Does {word} keep its meaning? {first} {second}\n{options}",
        "{word} in: {first}\n{word} in: {second}\n{options}",
    ),
)
