"""Training forms: exemplars are other problems, layouts are the suite's, prompts fit."""

from collections import Counter

import pytest

from flan_moe.data.forms import COT_SHARE, FEW_SHOT_SHARE, Forms
from flan_moe.data.mini_flan import TASK_FAMILIES, family
from flan_moe.data.mini_flan.sources import family_forms
from flan_moe.data.prompts import cot_prompt, cot_target


def always(prompt):
    return True


def problems(name, count):
    return [family(name).instance(i, seed=0, split="train") for i in range(count)]


@pytest.mark.parametrize("name", ["weekday", "reading_qa", "extract_kind", "word_category"])
def test_an_instance_is_never_its_own_exemplar(name):
    for example in family_forms(family(name)).examples(problems(name, 300), seed="s", fits=always):
        question, *exemplars = example.meta["shown"]
        assert question not in exemplars
        defined = "/definition_examples/" in example.template
        asked = question.split("\n", 1)[1] if defined else question
        assert example.prompt.count(asked) == 1


def test_even_equal_problems_do_not_show_each_other():
    forms = Forms(
        task="t",
        mixture="m",
        templates=2,
        key=lambda problem: problem.lower(),
        prompt=lambda problem, template: f"{template}:{problem}?",
        answer=str,
    )
    for example in forms.examples(["a", "A", "b"] * 50, seed="s", fits=always):
        letters = [shown[2].lower() for shown in example.meta["shown"]]
        assert len(set(letters)) == len(letters)


@pytest.mark.parametrize("name", [f.name for f in TASK_FAMILIES if not f.held_out])
def test_prompts_are_made_of_what_they_show_and_targets_are_exact(name):
    task = family(name)
    instances = problems(name, 60)
    for instance, example in zip(
        instances, family_forms(task).examples(instances, seed="s", fits=always), strict=True
    ):
        _, form, template = example.template.split("/")
        question, *exemplars = example.meta["shown"]
        assert question == task.prompt(instance, int(template))
        reasons = form.endswith("_cot")
        assert example.target == (
            cot_target(instance.rationale, instance.answer) if reasons else instance.answer
        )
        if form == "definition_examples":
            assert example.prompt.startswith(question.split("\n")[0])
            continue
        blocks = example.prompt.split("\n\n")
        assert len(blocks) == len(exemplars) + 1
        assert blocks[-1] == (cot_prompt(question) if reasons else question)
        for block, shown in zip(blocks, exemplars, strict=False):
            asked = cot_prompt(shown) if reasons else shown
            assert block.startswith(asked + "\n")
            assert ("the answer is" in block.removeprefix(asked)) == reasons


def test_shares_of_the_forms():
    def forms_of(name):
        examples = family_forms(family(name)).examples(problems(name, 1500), seed="s", fits=always)
        return Counter(example.template.split("/")[1] for example in examples)

    cot = forms_of("word_problem")
    assert cot["zero_shot_cot"] + cot["few_shot_cot"] == pytest.approx(1500 * COT_SHARE, rel=0.1)
    assert cot["few_shot"] + cot["few_shot_cot"] == pytest.approx(1500 * FEW_SHOT_SHARE, rel=0.1)
    niv2 = forms_of("reverse_list")
    assert set(niv2) == {"zero_shot", "few_shot", "definition_examples"}
    assert niv2["few_shot"] == pytest.approx(1500 * FEW_SHOT_SHARE / 2, rel=0.2)
    muffin = forms_of("sentiment")
    assert set(muffin) == {"zero_shot", "few_shot"}


def test_exemplars_are_dropped_until_the_prompt_fits():
    def fits(prompt):
        return len(prompt) <= 260

    task, instances = family("reading_qa"), problems("reading_qa", 300)
    free = list(family_forms(task).examples(instances, seed="s", fits=always))
    tight = list(family_forms(task).examples(instances, seed="s", fits=fits))
    assert [e.target for e in free] == [e.target for e in tight]
    assert max(len(e.prompt) for e in free) > 400
    assert all(len(e.prompt) <= 260 for e in tight)
    kept = Counter(len(e.meta["shown"]) for e in tight)
    assert kept[2] > 0, "one exemplar still fits in many"
    assert kept[2] < sum(len(e.meta["shown"]) > 1 for e in free)


def test_examples_under_one_definition_obey_it():
    task = family("extract_kind")
    for example in family_forms(task).examples(
        problems("extract_kind", 600), seed="s", fits=always
    ):
        if "/definition_examples/" in example.template:
            definitions = {shown.split("\n")[0] for shown in example.meta["shown"]}
            assert len(definitions) == 1
