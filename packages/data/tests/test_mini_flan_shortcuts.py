"""What guesses score that do not solve the problem: no family is easier than it declares."""

import re
from collections import Counter
from functools import cache
from random import Random

import pytest

from flan_moe.data.mini_flan import TASK_FAMILIES, family
from flan_moe.data.mini_flan.lexicon import NAMES, PLACES, WEEKDAYS

N = 3000
TOLERANCE = 0.04  # over four standard deviations of a share of N
CLUE = 0.15  # most that a single clue of a yes/no question may gain over guessing


@cache
def drawn(name):
    rng = Random(f"shortcuts/{name}")
    return [family(name).generate(rng) for _ in range(N)]


def share(name, guess):
    return sum(guess(instance) == instance.answer for instance in drawn(name)) / N


def candidates(instance):
    """The words of the prompt that could be the answer, in order, for each kind of answer."""
    text = " ".join(value for _, value in sorted(instance.fields.items()))
    for pool in (r"\d+", "|".join(NAMES), "|".join(PLACES), "|".join(WEEKDAYS)):
        if re.fullmatch(pool, instance.answer):
            return re.findall(rf"\b(?:{pool})\b", text)
    if instance.options:
        return [word for word in re.findall(r"\w+", text) if word in instance.options]
    return []


def listed(instance):
    """The items of the list that the prompt shows, and how they are joined."""
    fields = instance.fields
    if "numbers" in fields:
        return fields["numbers"].split(", "), ", "
    return fields.get("input", "").split(" in ")[-1].split(), " "


def of_candidates(choose):
    def guess(instance):
        found = candidates(instance)
        return choose(found) if found else None

    return guess


def of_list(choose):
    def guess(instance):
        items, separator = listed(instance)
        return separator.join(choose(items))

    return guess


GUESSES = {
    "first candidate": of_candidates(lambda found: found[0]),
    "second candidate": of_candidates(lambda found: found[:2][-1]),
    "last candidate but one": of_candidates(lambda found: found[-2:][0]),
    "last candidate": of_candidates(lambda found: found[-1]),
    "most frequent candidate": of_candidates(lambda found: max(found, key=found.count)),
    "least frequent candidate": of_candidates(lambda found: min(found, key=found.count)),
    "last of the least frequent": of_candidates(lambda found: min(found[::-1], key=found.count)),
    "the list": of_list(lambda items: items),
    "the list backwards": of_list(lambda items: items[::-1]),
    "all but the first": of_list(lambda items: items[1:]),
    "all but the last": of_list(lambda items: items[:-1]),
    "first of the list": of_list(lambda items: items[:1]),
    "last of the list": of_list(lambda items: items[-1:]),
    "tomorrow": of_candidates(
        lambda found: WEEKDAYS[(WEEKDAYS.index(found[0]) + 1) % 7] if found[0] in WEEKDAYS else None
    ),
}
SOLVES = {("reverse_list", "the list backwards")}


def trivial_scores(name):
    scores = {
        guess: share(name, answer)
        for guess, answer in GUESSES.items()
        if (name, guess) not in SOLVES
    }
    answers = Counter(instance.answer for instance in drawn(name))
    scores["always the same"] = max(answers.values()) / N
    for position in range(len(drawn(name)[0].options or ())):
        scores[f"option {position}"] = share(name, lambda one, at=position: one.options[at])
    return scores


@pytest.mark.parametrize("name", [f.name for f in TASK_FAMILIES])
def test_chance_is_what_the_best_trivial_guess_scores(name):
    scores = trivial_scores(name)
    best = max(scores, key=scores.get)
    assert scores[best] == pytest.approx(family(name).chance, abs=TOLERANCE), best


def people(text):
    return re.findall("|".join(NAMES), text)


def words(text):
    return re.sub("|".join(NAMES), "", text)


def places(text):
    return re.findall("|".join(PLACES), text)


CLUES = {
    "yes_no_qa": {
        "the place is named": lambda f: f["place"] in f["passage"],
        "how often": lambda f: f["passage"].count(f["place"]),
        "it is named first": lambda f: places(f["passage"])[0] == f["place"],
        "it is named last": lambda f: places(f["passage"])[-1] == f["place"],
        "places named": lambda f: len(places(f["passage"])),
    },
    "entailment": {
        "the place is named": lambda f: places(f["hypothesis"])[0] in f["premise"],
        "it is negated": lambda f: "not" in f["hypothesis"],
        "people": lambda f: len(people(f["premise"])),
    },
    "paraphrase": {
        "the same people": lambda f: set(people(f["first"])) == set(people(f["second"])),
        "in the same order": lambda f: people(f["first"]) == people(f["second"]),
        "the same words": lambda f: words(f["first"]) == words(f["second"]),
        "the second sentence's words": lambda f: words(f["second"]),
    },
    "sentiment": {
        "it is negated": lambda f: "not" in f["text"],
        "length": lambda f: len(f["text"].split()),
    },
}


@pytest.mark.parametrize(("name", "clue"), [(n, c) for n, clues in CLUES.items() for c in clues])
def test_no_single_clue_answers_a_yes_no_question(name, clue):
    """The best answer for each value of a clue, learnt from one half and scored on the other."""
    seen = {}
    half = N // 2
    for instance in drawn(name)[:half]:
        seen.setdefault(CLUES[name][clue](instance.fields), Counter())[instance.answer] += 1
    right = sum(
        seen[value].most_common(1)[0][0] == instance.answer
        for instance in drawn(name)[half:]
        if (value := CLUES[name][clue](instance.fields)) in seen
    )
    assert right / half < family(name).chance + CLUE


@pytest.mark.parametrize("clue", ["length", "largest repetition"])
def test_neither_length_nor_repetition_counts_a_word(clue):
    seen = Counter()
    for instance in drawn("count_word"):
        items = listed(instance)[0]
        value = len(items) if clue == "length" else max(Counter(items).values())
        seen[value, instance.answer] += 1
    best = {value: max(n for (v, _), n in seen.items() if v == value) for value, _ in seen}
    assert sum(best.values()) / N < (0.3 if clue == "length" else 0.75)
