"""Six families in the manner of T0-SF: prompted data sets with several phrasings each."""

from __future__ import annotations

from random import Random

from flan_moe.data.mini_flan.family import Family, Instance
from flan_moe.data.mini_flan.lexicon import KINDS, NAMES, WEEKDAYS, WORDS, article, kind_of

# Topic: (who or what, what happens, where).
HEADLINES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "sport": (
        ("Young team", "Swimmer", "Runner", "Football club"),
        ("wins the final", "breaks a record", "loses the match", "scores twice"),
        ("at the stadium", "in front of fans", "after a long race"),
    ),
    "weather": (
        ("Heavy rain", "Strong wind", "Snow", "A storm"),
        ("hits the coast", "covers the roads", "is expected", "will end soon"),
        ("in the north", "in the hills", "near the sea"),
    ),
    "money": (
        ("Bank", "Market", "Company", "Small shop"),
        ("raises prices", "cuts costs", "reports a loss", "makes a profit"),
        ("this quarter", "as taxes grow", "after a good year"),
    ),
    "science": (
        ("Researchers", "Telescope", "Laboratory", "Scientist"),
        ("finds a new planet", "tests a vaccine", "explains how cells grow", "studies old bones"),
        ("in a new study", "with a tiny robot", "after many experiments"),
    ),
}

RATING_WORDS: dict[int, tuple[str, ...]] = {
    1: ("terrible", "useless", "horrible"),
    2: ("poor", "weak", "disappointing"),
    3: ("okay", "average", "fair"),
    4: ("good", "nice", "solid"),
    5: ("perfect", "excellent", "amazing"),
}
RATED = ("screen", "sound", "battery", "camera", "price", "design", "keyboard", "manual")

# The made-up world: what one wants to do, what one needs for it.
NEEDS: dict[str, str] = {
    "cut the bread": "a knife",
    "write a letter": "a pen",
    "open the door": "a key",
    "see in the dark": "a lamp",
    "stay dry in the rain": "an umbrella",
    "cross the river": "a boat",
    "sweep the floor": "a broom",
    "fix the nail": "a hammer",
    "know the time": "a clock",
    "eat the soup": "a spoon",
    "sleep well": "a bed",
    "carry water": "a bucket",
    "comb the dog": "a comb",
    "climb on the roof": "a ladder",
    "send a parcel": "a stamp",
    "pay for lunch": "a coin",
}

# Same meaning when the roles are swapped together with the verb.
CONVERSES = (
    ("{a} is older than {b}.", "{b} is younger than {a}."),
    ("{a} sold a bike to {b}.", "{b} bought a bike from {a}."),
    ("{a} sits behind {b}.", "{b} sits in front of {a}."),
    ("{a} taught {b} to swim.", "{b} learned to swim from {a}."),
    ("{a} gave the book to {b}.", "{b} got the book from {a}."),
    ("{a} lives above {b}.", "{b} lives below {a}."),
    ("{a} won against {b}.", "{b} lost to {a}."),
)


def _headline_topic(rng: Random) -> Instance:
    topic = rng.choice(sorted(HEADLINES))
    who, what, where = (rng.choice(parts) for parts in HEADLINES[topic])
    day = rng.choice(("", *(f" on {day}" for day in WEEKDAYS)))
    source = rng.choice(("", "News: ", "Today: ", "Latest: "))
    return Instance(
        fields={"headline": f"{source}{who} {what} {where}{day}"},
        answer=topic,
        options=tuple(rng.sample(sorted(HEADLINES), len(HEADLINES))),
    )


def _review_rating(rng: Random) -> Instance:
    rating = rng.randint(1, 5)
    spread = rng.choice([0, 0, 1, 2]) if rating in (2, 3, 4) else 0
    spread = min(spread, rating - 1, 5 - rating)
    levels = rng.sample((rating - spread, rating + spread), 2)
    parts = rng.sample(RATED, 2)
    first, second = (
        f"the {part} is {rng.choice(RATING_WORDS[level])}"
        for part, level in zip(parts, levels, strict=True)
    )
    text = f"{first} {'but' if spread else 'and'} {second}."
    return Instance(
        fields={"review": text[0].upper() + text[1:]},
        answer=f"{rating} stars" if rating > 1 else "1 star",
        options=("1 star", "2 stars", "3 stars", "4 stars", "5 stars"),
    )


def _commonsense_choice(rng: Random) -> Instance:
    goal = rng.choice(sorted(NEEDS))
    others = [need for need in sorted(NEEDS.values()) if need != NEEDS[goal]]
    options = [NEEDS[goal], *rng.sample(others, 3)]
    rng.shuffle(options)
    return Instance(
        fields={"who": rng.choice(NAMES), "goal": goal},
        answer=NEEDS[goal],
        options=tuple(options),
    )


def _paraphrase(rng: Random) -> Instance:
    a, b = rng.sample(NAMES, 2)
    pair, other = rng.sample(CONVERSES, 2)
    side = rng.randrange(2)
    first, second = pair[side], pair[1 - side]
    same = rng.random() < 0.5
    statement = second.format(a=a, b=b)
    if not same:
        # Mostly another relation with the names where a paraphrase has them, so that neither the
        # names nor their order gives the answer away; else the roles are not the same.
        changed = [other[1 - side].format(a=a, b=b)] * 3
        statement = rng.choice([*changed, second.format(a=b, b=a), first.format(a=b, b=a)])
    return Instance(
        fields={"first": first.format(a=a, b=b), "second": statement},
        answer="yes" if same else "no",
        options=("yes", "no"),
    )


def _word_category(rng: Random) -> Instance:
    kinds = rng.sample(sorted(KINDS), 4)
    if rng.random() < 0.5:
        kind = rng.choice(kinds)
        return Instance(
            fields={"question": f"What kind of word is {rng.choice(KINDS[kind][1])}?"},
            answer=kind,
            options=tuple(kinds),
        )
    words = [rng.choice(KINDS[kind][1]) for kind in kinds]
    answer = rng.choice(words)
    return Instance(
        fields={"question": f"Which of these is {article(kind_of(answer))}?"},
        answer=answer,
        options=tuple(words),
    )


def _odd_one_out(rng: Random) -> Instance:
    common = rng.choice(sorted(KINDS))
    odd = rng.choice([word for word in WORDS if kind_of(word) != common])
    options = [odd, *rng.sample(KINDS[common][1], 3)]
    rng.shuffle(options)
    return Instance(fields={"words": ", ".join(options)}, answer=odd, options=tuple(options))


FAMILIES = (
    Family(
        name="headline_topic",
        mixture="t0_sf",
        cluster="topics",
        kind="multiple_choice",
        chance=1 / 4,
        generate=_headline_topic,
        templates=(
            "{headline}\nWhat is this headline about?",
            "Which section of a newspaper should print this?\n{headline}",
            'Pick the topic of "{headline}"',
            "Headline: {headline}\nTopic:",
            "I read this today: {headline}. Which topic is it?",
        ),
    ),
    Family(
        name="review_rating",
        mixture="t0_sf",
        cluster="sentiment",
        kind="multiple_choice",
        chance=1 / 5,
        generate=_review_rating,
        templates=(
            "{review}\nHow many stars does this review give?",
            "Guess the rating of this phone.\nReview: {review}",
            "A customer wrote: {review} What rating is that?",
            "Review: {review}\nStars:",
        ),
    ),
    Family(
        name="commonsense_choice",
        mixture="t0_sf",
        cluster="commonsense",
        kind="multiple_choice",
        chance=1 / 4,
        generate=_commonsense_choice,
        templates=(
            "{who} wants to {goal}. What does {who} need?",
            "Choose what helps {who} to {goal}.",
            "What should {who} take to {goal}?",
            'Complete the sentence: "To {goal}, {who} uses"',
        ),
    ),
    Family(
        name="paraphrase",
        mixture="t0_sf",
        cluster="paraphrase",
        kind="multiple_choice",
        chance=1 / 2,
        generate=_paraphrase,
        templates=(
            "{first}\n{second}\nDo these two sentences mean the same?",
            "First: {first}\nSecond: {second}\nSame meaning?",
            'Can I replace "{first}" with "{second}" and keep the meaning?',
            "Is this a paraphrase?\nSentence 1: {first}\nSentence 2: {second}",
        ),
    ),
    Family(
        name="word_category",
        mixture="t0_sf",
        cluster="word kinds",
        kind="multiple_choice",
        chance=1 / 4,
        generate=_word_category,
        templates=(
            "{question}",
            "Answer the question. {question}",
            "Question: {question}",
            "Choose the best answer.\n{question}",
        ),
    ),
    Family(
        name="odd_one_out",
        mixture="t0_sf",
        cluster="odd one out",
        held_out=True,
        kind="multiple_choice",
        chance=1 / 4,
        generate=_odd_one_out,
        templates=(
            "Which of these does not fit with the others? {words}",
            "Words: {words}\nThree of these are the same kind of thing. Which is not?",
            "Find the word of another kind: {words}",
            "{words}\nWhich word does not belong here?",
        ),
    ),
)
