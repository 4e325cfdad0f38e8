"""Wordings of questions about one text: its mood, its topic."""

from flan_moe.data.forms.wordings.wordings import Wordings

SENTIMENT = Wordings(
    zero_shot=(
        "{text}\nIs this positive or negative?\n{options}",
        "Review: {text}\n{options}\nSentiment:",
        "What does the writer think?\n\n{text}\n\n{options}",
        "Somebody wrote about a film: {text}\nDid they like it?\n{options}",
        "{text}\n\nThe mood of this text is\n{options}",
        'How would you describe the opinion in "{text}"?\n{options}',
        "Judge the tone.\n{text}\n{options}",
        "Read the following: {text}\nWhat feeling does it express?\n{options}",
        "Text: {text}\n\nOpinion of the author:\n{options}",
        "A critic says: {text}\n{options}\nIs the verdict good or bad?",
    ),
    few_shot=(
        "{text}\n{options}",
        "Review: {text}\n{options}",
        "{text}\nMood?\n{options}",
        "Text: {text}\n\n{options}",
        '"{text}"\n{options}',
        "Comment: {text}\nSentiment?\n{options}",
        "Critic: {text}\n{options}",
        "Opinion in: {text}\n{options}",
        "Tone of this: {text}\n{options}",
        "{text} (good or bad?)\n{options}",
    ),
)

TOPIC = Wordings(
    zero_shot=(
        "{text}\nWhat is this about?\n{options}",
        "Article: {text}\n{options}\nTopic:",
        "Which section of a newspaper should print this?\n\n{text}\n\n{options}",
        "{text}\n\nFile this piece under the right heading.\n{options}",
        "Name the subject of the news below.\n{text}\n{options}",
        "A news agency reports: {text}\nWhat kind of news is it?\n{options}",
        "Sort this text.\n{text}\n{options}\nIt belongs to",
        "Read: {text}\nThe category is\n{options}",
        "News: {text}\n\nWho will want to read it, readers of what?\n{options}",
        "{text}\n{options}\nPick a label for this story.",
    ),
    few_shot=(
        "{text}\n{options}",
        "Article: {text}\n{options}",
        "{text}\nTopic?\n{options}",
        "News: {text}\n\n{options}",
        "Story: {text}\nSection?\n{options}",
        "Report: {text}\n{options}",
        "Subject of this: {text}\n{options}",
        "{text}\nFile under:\n{options}",
        "Wire: {text}\nKind of news?\n{options}",
        "Text to sort: {text}\n{options}",
    ),
)
