"""Six families in the manner of Muffin: classic language tasks, a dialog and a small program."""

from __future__ import annotations

from random import Random

from flan_moe.data.mini_flan.family import Family, Instance
from flan_moe.data.mini_flan.lexicon import COUNTABLES, NAMES, PLACES, counted

YES_NO = ("yes", "no")
YES_NO_MAYBE = ("yes", "no", "maybe")

GOOD_WORDS = ("great", "lovely", "friendly", "clean", "fast", "tasty", "clever", "cosy")
BAD_WORDS = ("awful", "boring", "rude", "dirty", "slow", "ugly", "broken", "noisy")
REVIEWED = ("film", "hotel", "waiter", "soup", "room", "train", "book", "garden", "game", "town")

_STAYING = ("{who} is in the {place}.", "{who} sits in the {place}.")
_GOING = ("{who} went to the {place}.", "{who} walked to the {place}.")


def _stay(rng: Random, who: str, place: str) -> str:
    return rng.choice(_STAYING).format(who=who, place=place)


def _go(rng: Random, who: str, place: str) -> str:
    return rng.choice(_GOING).format(who=who, place=place)


def _entailment(rng: Random) -> Instance:
    *people, stranger = rng.sample(NAMES, rng.randint(3, 4))
    places = rng.sample(PLACES, len(people))
    premise = " ".join(_stay(rng, who, place) for who, place in zip(people, places, strict=True))
    label = rng.choice(YES_NO_MAYBE)
    asked = rng.randrange(len(people))
    who = stranger if label == "maybe" else people[asked]
    elsewhere = rng.choice([place for place in places if place != places[asked]])
    negated = rng.random() < 0.3
    place = places[asked] if (label == "yes") != negated else elsewhere
    if label == "maybe":
        place = rng.choice(places)
    hypothesis = f"{who} is {'not ' if negated else ''}in the {place}."
    return Instance(
        fields={"premise": premise, "hypothesis": hypothesis}, answer=label, options=YES_NO_MAYBE
    )


def _sentiment(rng: Random) -> Instance:
    positive = rng.random() < 0.5
    clauses = []
    for thing in rng.sample(REVIEWED, rng.randint(1, 3)):
        negated = rng.random() < 0.25
        word = rng.choice(GOOD_WORDS if positive != negated else BAD_WORDS)
        clauses.append(f"the {thing} was {'not ' if negated else ''}{word}")
    text = " and ".join(clauses)
    return Instance(
        fields={"text": text[0].upper() + text[1:] + "."},
        answer="positive" if positive else "negative",
        options=("positive", "negative"),
    )


def _movements(rng: Random) -> tuple[str, dict[str, list[str]]]:
    """A passage in which people move, and the places each of them was in, the last one now."""
    people = rng.sample(NAMES, rng.randint(2, 4))
    sentences, visited = [], {}
    for who in people:
        visited[who] = [rng.choice(PLACES)]
        sentences.append(_stay(rng, who, visited[who][0]))
    for who in rng.sample(people, rng.randint(0, 2)):
        visited[who].append(rng.choice([place for place in PLACES if place not in visited[who]]))
        sentences.append(_go(rng, who, visited[who][-1]))
    return " ".join(sentences), visited


def _reading_qa(rng: Random) -> Instance:
    passage, visited = _movements(rng)
    who = rng.choice(sorted(visited))
    return Instance(fields={"passage": passage, "who": who}, answer=visited[who][-1])


def _yes_no_qa(rng: Random) -> Instance:
    wrong: list[str] = []
    while not wrong:
        passage, visited = _movements(rng)
        who = rng.choice(sorted(visited))
        *left, here = visited[who]
        # A wrong place is one that the passage names too: where they were before, else another's.
        wrong = left or [places[-1] for places in visited.values() if places[-1] != here]
    true = rng.random() < 0.5
    return Instance(
        fields={"passage": passage, "who": who, "place": here if true else rng.choice(wrong)},
        answer="yes" if true else "no",
        options=YES_NO,
    )


def _dialog_order(rng: Random) -> Instance:
    first, second = rng.sample(COUNTABLES, 2)
    few, many, changed = (rng.randint(1, 9) for _ in range(3))
    greeting = rng.choice(("Hello! What would you like?", "Good morning! What can I get you?"))
    lines = [
        f"Clerk: {greeting}",
        f"Customer: {counted(few, first)}, please.",
    ]
    order = [counted(few, first)]
    if rng.random() < 0.6:
        lines += ["Clerk: Anything else?", f"Customer: Yes, {counted(many, second)} too."]
        order.append(counted(many, second))
    if rng.random() < 0.4:
        lines += ["Clerk: Is that all?", f"Customer: Sorry, make it {counted(changed, first)}."]
        order[0] = counted(changed, first)
    return Instance(fields={"dialog": "\n".join(lines)}, answer=" and ".join(order))


def _program_output(rng: Random) -> Instance:
    names = rng.sample("abcxyz", rng.randint(2, 3))
    values: dict[str, int] = {}
    lines = []
    for name in names:
        if values and rng.random() < 0.75:
            source = rng.choice(sorted(values))
            operation = rng.choice("+-")
            operand = rng.randint(0, 9 if operation == "+" else min(9, values[source]))
            values[name] = values[source] + operand * (1 if operation == "+" else -1)
            lines.append(f"{name} = {source} {operation} {operand}")
        else:
            values[name] = rng.randint(0, 9)
            lines.append(f"{name} = {values[name]}")
    shown = rng.choice(names[1:])
    lines.append(f"print({shown})")
    return Instance(fields={"program": "\n".join(lines)}, answer=str(values[shown]))


FAMILIES = (
    Family(
        name="entailment",
        mixture="muffin",
        cluster="inference",
        held_out=True,
        kind="multiple_choice",
        chance=1 / 3,
        generate=_entailment,
        templates=(
            "Premise: {premise}\nHypothesis: {hypothesis}\nDoes the premise prove the hypothesis?",
            "{premise}\nCan we conclude that this is true: {hypothesis}",
            "Read this: {premise}\nIs the next sentence right? {hypothesis}",
            'If we know "{premise}" then is it true that "{hypothesis}"',
        ),
    ),
    Family(
        name="sentiment",
        mixture="muffin",
        cluster="sentiment",
        kind="multiple_choice",
        chance=1 / 2,
        generate=_sentiment,
        templates=(
            "Review: {text}\nIs this review positive or negative?",
            "{text}\nWhat is the sentiment of this text?",
            "What does the writer feel about it? {text}",
            "Decide whether this opinion is positive or negative.\n{text}",
        ),
    ),
    Family(
        name="reading_qa",
        mixture="muffin",
        cluster="reading",
        kind="generate",
        chance=0.43,  # the place named last
        generate=_reading_qa,
        templates=(
            "{passage}\nQuestion: Where is {who} now?\nAnswer:",
            "Read the text and answer.\n{passage}\nWhere is {who}?",
            "Where is {who} at the end of this story?\n{passage}",
            "Text: {passage}\nIn which place is {who}?",
        ),
    ),
    Family(
        name="yes_no_qa",
        mixture="muffin",
        cluster="reading",
        held_out=True,
        kind="multiple_choice",
        chance=1 / 2,
        generate=_yes_no_qa,
        templates=(
            "{passage}\nQuestion: Is {who} in the {place} now?",
            "Read the text and answer yes or no.\n{passage}\nIs {who} in the {place}?",
            "Is {who} in the {place} at the end of this story?\n{passage}",
            "Text: {passage}\nIs it right that {who} is in the {place}?",
        ),
    ),
    Family(
        name="dialog_order",
        mixture="muffin",
        cluster="dialog",
        kind="generate",
        generate=_dialog_order,
        templates=(
            "{dialog}\nWhat does the customer want?",
            "Read the dialog and write down the order.\n{dialog}\nOrder:",
            "What must the clerk bring?\n{dialog}",
            "{dialog}\nClerk: So that is",
        ),
    ),
    Family(
        name="program_output",
        mixture="muffin",
        cluster="programs",
        kind="generate",
        chance=0.3,  # the second number
        generate=_program_output,
        templates=(
            "{program}\nWhat does this program print?",
            "Run this program and write its output.\n{program}\nOutput:",
            "Program:\n{program}\nResult:",
            "What is printed by these lines?\n{program}",
        ),
    ),
)
