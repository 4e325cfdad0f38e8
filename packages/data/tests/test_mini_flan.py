"""What a task family promises: purity, disjoint splits, many problems, many wordings."""

from collections import Counter
from random import Random

import pytest

from flan_moe.data.mini_flan import MIXTURES, TASK_FAMILIES, Family, Instance, family, group_of
from flan_moe.data.mini_flan.lexicon import KINDS, counted, kind_of, listed, plural
from flan_moe.data.mini_flan.sources import mini_flan_sources

NAMES = [f.name for f in TASK_FAMILIES]


def test_six_families_in_the_manner_of_each_mixture_and_six_held_out_of_all():
    assert Counter(f.mixture for f in TASK_FAMILIES) == dict.fromkeys(MIXTURES, 6)
    assert len(set(NAMES)) == 24
    assert sum(f.held_out for f in TASK_FAMILIES) == 6


def test_a_cluster_of_each_mixture_is_held_out_whole():
    groups = {}
    for task in TASK_FAMILIES:
        groups.setdefault(group_of(task), []).append(task)
    assert sorted(f.mixture for f in groups["held_out"]) == sorted(MIXTURES)
    trained = {f.cluster for f in groups["held_in"]}
    assert not trained & {f.cluster for f in groups["held_out"]}
    assert {f.cluster for f in groups["held_out_sibling"]} <= trained
    generators = {f.generate for f in groups["held_in"]}
    wordings = {template for f in groups["held_in"] for template in f.templates}
    for task in groups["held_out"]:
        assert task.generate not in generators
        assert not wordings & set(task.templates)


@pytest.mark.parametrize("name", NAMES)
def test_an_instance_is_a_pure_function_of_seed_split_and_index(name):
    task = family(name)
    indices = list(range(20))
    forward = [task.instance(i, seed=5, split="train") for i in indices]
    backward = [task.instance(i, seed=5, split="train") for i in reversed(indices)]
    assert forward == backward[::-1]
    assert forward != [task.instance(i, seed=6, split="train") for i in indices]


@pytest.mark.parametrize("name", NAMES)
def test_no_problem_is_in_two_splits_under_any_seed(name):
    task = family(name)
    seen = {
        split: {
            task.instance(i, seed=seed, split=split).content() for seed in (0, 1) for i in range(80)
        }
        for split in ("train", "validation", "eval")
    }
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["eval"]
    assert not seen["validation"] & seen["eval"]


@pytest.mark.parametrize("name", NAMES)
def test_there_are_enough_different_problems(name):
    task = family(name)
    train = {task.instance(i, seed=0, split="train").content() for i in range(500)}
    evaluation = {task.instance(i, seed=0, split="eval").content() for i in range(150)}
    assert len(train) > 200
    assert len(evaluation) > 80


@pytest.mark.parametrize("name", NAMES)
def test_prompts_differ_by_wording_and_name_every_field_they_need(name):
    task = family(name)
    instance = task.instance(0, seed=0, split="train")
    prompts = {task.prompt(instance, template) for template in range(len(task.templates))}
    assert len(prompts) >= 4
    for prompt in prompts:
        assert "{" not in prompt
        assert "  " not in prompt
        assert "\n\n" not in prompt, "a blank line separates few-shot exemplars"
        for option in instance.options or ():
            assert f"\n- {option}" in prompt


@pytest.mark.parametrize("name", NAMES)
def test_different_problems_of_a_family_have_different_prompts(name):
    task = family(name)
    instances = {}
    for index in range(200):
        instance = task.instance(index, seed=0, split="train")
        instances[instance.content()] = instance
    prompts = {(task.prompt(one, 0), one.answer) for one in instances.values()}
    assert len(prompts) == len(instances)


@pytest.mark.parametrize("task", [f for f in TASK_FAMILIES if f.kind == "multiple_choice"])
def test_multiple_choice_answers_are_options_and_guessing_scores_chance(task):
    instances = [task.instance(i, seed=0, split="train") for i in range(800)]
    for one in instances:
        assert one.options.count(one.answer) == 1
        assert len(one.options) == round(1 / task.chance)
    position = Counter(one.options.index(one.answer) for one in instances)
    label = Counter(one.answer for one in instances)
    # No position and, where labels are few, no label is a better guess than chance by much.
    assert max(position.values()) / len(instances) < task.chance + 0.08
    if len(label) <= 5:
        assert max(label.values()) / len(instances) < task.chance + 0.08


def test_a_family_checks_its_own_declaration():
    good = {
        "name": "x",
        "mixture": "cot",
        "cluster": "x",
        "kind": "generate",
        "templates": ("{a}1", "{a}2", "{a}3", "{a}4"),
        "generate": lambda rng: Instance(fields={"a": str(rng.random())}, answer="b"),
    }
    Family(**good)
    for key, value, message in (
        ("mixture", "flan", "mixture is 'flan'"),
        ("kind", "choice", "kind is 'choice'"),
        ("templates", ("{a}",) * 4, "1 templates; expected 4"),
        ("chance", 1.0, "chance is 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            Family(**{**good, key: value})


def test_examples_under_a_definition_need_a_definition():
    task = family("weekday")
    one, two = (task.instance(i, seed=0, split="train") for i in range(2))
    with pytest.raises(ValueError, match="only niv2 families"):
        task.prompt(one, 0, (two,))


def test_an_unknown_family_is_named():
    with pytest.raises(ValueError, match="no task family 'sudoku'"):
        family("sudoku")


def test_more_evaluation_questions_than_a_family_has_are_refused():
    sources = mini_flan_sources(examples=1, validation=0, evaluation=2000, seed=0)
    headlines = next(source for source in sources if source.name == "headline_topic")
    with pytest.raises(ValueError, match=r"2000 .* family 'headline_topic' has no more than about"):
        headlines.open(lambda prompt: True)


def test_grammar():
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert counted(1, "brush") == "1 brush"
    assert counted(2, "brush") == "2 brushes"
    assert plural("cat") == "cats"
    assert all(kind_of(word) == kind for kind, (_, words) in KINDS.items() for word in words)
    words = [word for _, words in KINDS.values() for word in words]
    assert len(set(words)) == len(words), "a word of two kinds would have two right answers"


def test_generators_take_their_randomness_from_their_argument_only():
    for task in TASK_FAMILIES:
        assert task.generate(Random(9)) == task.generate(Random(9))
