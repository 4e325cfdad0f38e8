"""Six families in the manner of the chain-of-thought mixture: reasoning, then the answer."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from flan_moe.data.mini_flan.family import Family, Instance
from flan_moe.data.mini_flan.lexicon import (
    COUNTABLES,
    KINDS,
    NAMES,
    WEEKDAYS,
    counted,
    kind_of,
    listed,
    plural,
)

EVENTS = ("party", "concert", "trip", "test", "meeting", "game", "lesson", "fair")

# What is compared: (more of it, most of it, least of it).
SCALES = (
    ("taller", "tallest", "shortest"),
    ("older", "oldest", "youngest"),
    ("faster", "fastest", "slowest"),
    ("richer", "richest", "poorest"),
)

# What happens to a number of things: (sentence, sign).
CHANGES = (
    ("{who} finds {n} more.", +1),
    ("{who} buys {n} more.", +1),
    ("{other} gives {who} {n} more.", +1),
    ("{who} loses {n}.", -1),
    ("{who} sells {n}.", -1),
    ("{who} gives {other} {n}.", -1),
)


def _word_problem(rng: Random) -> Instance:
    who, other = rng.sample(NAMES, 2)
    thing = rng.choice(COUNTABLES)
    total = rng.randint(1, 9)
    story, steps = [f"{who} has {counted(total, thing)}."], [f"{who} starts with {total}."]
    for _ in range(rng.choice((1, 1, 2))):
        sentence, sign = rng.choice(CHANGES if total else CHANGES[:3])
        n = rng.randint(1, 9 if sign > 0 else min(9, total))
        story.append(sentence.format(who=who, other=other, n=n))
        steps.append(f"{total} {'+' if sign > 0 else '-'} {n} = {total + sign * n}.")
        total += sign * n
    return Instance(
        fields={"story": " ".join(story), "who": who, "things": plural(thing)},
        answer=str(total),
        rationale=" ".join(steps),
    )


def _weekday(rng: Random) -> Instance:
    start, distance = rng.randrange(7), rng.randint(1, 6)
    who, event = rng.choice(NAMES), rng.choice(EVENTS)
    if rng.random() < 0.6:
        sign, text = +1, f"{who} has a {event} in {counted(distance, 'day')}."
    else:
        sign, text = -1, f"{who} had a {event} {counted(distance, 'day')} ago."
    days = [WEEKDAYS[(start + sign * step) % 7] for step in range(distance + 1)]
    direction = "forward" if sign > 0 else "back"
    return Instance(
        fields={"story": f"Today is {WEEKDAYS[start]}. {text}", "event": event},
        answer=days[-1],
        rationale=f"Start on {days[0]} and go {direction}: {', '.join(days[1:])}.",
    )


def _sort_numbers(rng: Random) -> Instance:
    numbers = rng.sample(range(rng.choice((10, 30))), rng.randint(3, 4))
    smallest_first = rng.random() < 0.5
    ordered = sorted(numbers, reverse=not smallest_first)
    most = "smallest" if smallest_first else "largest"
    steps = [f"The {most} is {ordered[0]}.", *(f"Then comes {n}." for n in ordered[1:])]
    return Instance(
        fields={"numbers": ", ".join(map(str, numbers)), "most": most},
        answer=", ".join(map(str, ordered)),
        rationale=" ".join(steps),
    )


def _order_logic(rng: Random) -> Instance:
    more, most, least = rng.choice(SCALES)
    people = rng.sample(NAMES, rng.randint(2, 4))
    facts = [f"{a} is {more} than {b}." for a, b in pairwise(people)]
    rng.shuffle(facts)
    asked, answer = rng.choice(((most, people[0]), (least, people[-1])))
    return Instance(
        fields={"facts": " ".join(facts), "asked": asked},
        answer=answer,
        rationale=f"From the {most} to the {least}: {', '.join(people)}.",
    )


def _object_counting(rng: Random) -> Instance:
    kind, *other_kinds = rng.sample(("animal", "garment", "tool"), 3)
    others = [word for name in other_kinds for word in KINDS[name][1]]
    wanted = rng.sample(KINDS[kind][1], rng.randint(2, 3))
    counts = {word: rng.randint(1, 5) for word in wanted + rng.sample(others, rng.randint(1, 2))}
    shown = rng.sample(sorted(counts), len(counts))
    parts = [counts[word] for word in shown if kind_of(word) == kind]
    named = listed([counted(counts[word], word) for word in shown if kind_of(word) == kind])
    return Instance(
        fields={
            "who": rng.choice(NAMES),
            "things": listed([counted(counts[word], word) for word in shown]),
            "kinds": KINDS[kind][0],
        },
        answer=str(sum(parts)),
        rationale=f"The {KINDS[kind][0]} are {named}. "
        f"{' + '.join(map(str, parts))} = {sum(parts)}.",
    )


def _compare_totals(rng: Random) -> Instance:
    people, things = rng.sample(NAMES, 2), rng.sample(COUNTABLES, 2)
    while True:
        counts = [(rng.randint(1, 9), rng.randint(1, 9)) for _ in people]
        totals = [sum(pair) for pair in counts]
        if totals[0] != totals[1]:
            break
    story = [
        f"{who} has {counted(n, things[0])} and {counted(m, things[1])}."
        for who, (n, m) in zip(people, counts, strict=True)
    ]
    steps = [f"{who} has {n} + {m} = {n + m}." for who, (n, m) in zip(people, counts, strict=True)]
    high, low = max(totals), min(totals)
    return Instance(
        fields={"story": " ".join(story)},
        answer=people[totals.index(high)],
        rationale=" ".join([*steps, f"{high} is more than {low}."]),
    )


FAMILIES = (
    Family(
        name="word_problem",
        mixture="cot",
        cluster="arithmetic",
        kind="generate",
        chance=0.14,  # always the likeliest number
        generate=_word_problem,
        templates=(
            "{story} How many {things} does {who} have now?",
            "Solve this problem.\n{story} How many {things} has {who} in the end?",
            "Question: {story} What is the number of {things} that {who} has?",
            "{story}\nNow count the {things} of {who}.",
        ),
    ),
    Family(
        name="weekday",
        mixture="cot",
        cluster="dates",
        kind="generate",
        chance=1 / 6,  # any day but today
        generate=_weekday,
        templates=(
            "{story} Which day of the week is the {event}?",
            "Question: {story} On what day is the {event}?",
            "{story}\nWork out the day of the {event}.",
            "Find the right day.\n{story} When is the {event}?",
        ),
    ),
    Family(
        name="sort_numbers",
        mixture="cot",
        cluster="ordering",
        kind="generate",
        chance=5 / 48,  # the numbers as they stand: three or four in order
        generate=_sort_numbers,
        templates=(
            "Sort these numbers, the {most} first: {numbers}",
            "{numbers}\nPut these numbers in order. Begin with the {most}.",
            "Question: What is the order of {numbers} when the {most} comes first?",
            "Order the numbers {numbers} and start with the {most} one.",
        ),
    ),
    Family(
        name="order_logic",
        mixture="cot",
        cluster="logic",
        held_out=True,
        kind="generate",
        chance=1 / 2,  # one of the two names that are there once
        generate=_order_logic,
        templates=(
            "{facts} Who is the {asked}?",
            "Question: {facts} Which of them is the {asked}?",
            "Find the {asked} person.\n{facts}",
            "{facts}\nName the {asked} one.",
        ),
    ),
    Family(
        name="object_counting",
        mixture="cot",
        cluster="arithmetic",
        kind="generate",
        chance=0.14,  # always the likeliest number
        generate=_object_counting,
        templates=(
            "{who} has {things}. How many {kinds} does {who} have?",
            "Question: {who} sees {things}. What is the number of {kinds}?",
            "{who} draws {things}.\nNow count the {kinds}.",
            "Count the {kinds}: {things}.",
        ),
    ),
    Family(
        name="compare_totals",
        mixture="cot",
        cluster="arithmetic",
        kind="generate",
        chance=1 / 2,  # one of the two names
        generate=_compare_totals,
        templates=(
            "{story} Who has more things?",
            "Question: {story} Which of them has more in all?",
            "Find the person with more things.\n{story}",
            "{story}\nName the one who has more.",
        ),
    ),
)
