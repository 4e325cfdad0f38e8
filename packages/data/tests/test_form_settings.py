"""The four settings of real tasks: options listed, drawn or left out; exemplars; wordings."""

import re
from collections import Counter
from pathlib import Path

import pytest

from flan_moe.data.forms import FormShares, Style
from flan_moe.data.forms.few_shot import PATTERNS
from flan_moe.data.forms.length_budget import LengthBudget
from flan_moe.data.forms.options import FIXED, HEADINGS, LABELS, OptionStyle, drawn_style
from flan_moe.data.forms.shares import FLAN_SHARES, chosen_shares
from flan_moe.data.forms.wordings import WORDINGS, Wordings
from flan_moe.data.prompts import ANSWER_CUE, COT_CUE
from flan_moe.data.readers import RawTask, Record
from flan_moe.data.readers.record import keep_usable
from flan_moe.data.sources.prompt_forms import task_forms
from flan_moe.data.template_types import FS_NOOPT, FS_OPT, TEMPLATE_TYPES, ZS_NOOPT, ZS_OPT


def always(prompt):
    return True


def raw(records, wordings="question_choice", **more):
    kept, dropped = keep_usable(records)
    return RawTask(
        name="t",
        file=Path("t.json"),
        definition=None,
        examples=(),
        records=kept,
        read=len(records),
        dropped=dropped,
        wordings=wordings,
        **more,
    )


def choices(count, rationale=None):
    """Problems whose texts and options are found again by their number."""
    return [
        Record(
            input=f"problem<{i}>",
            targets=(f"right<{i}>",),
            rationale=rationale and f"{rationale}<{i}>",
            fields=(("question", f"problem<{i}>"),),
            options=tuple(f"{word}<{i}>" for word in ("wrong", "right", "other", "last")),
        )
        for i in range(count)
    ]


def examples(records, mixture="muffin", seed="s", fits=always, shares=None, **task):
    forms = task_forms(raw(records, **task), mixture, (), shares)
    return list(forms.examples(records, seed=seed, fits=fits))


@pytest.mark.parametrize("mixture", FLAN_SHARES)
def test_settings_have_the_shares_of_flan_in_every_stretch_of_examples(mixture):
    kinds = [e.template.split("/")[0] for e in examples(choices(400), mixture)]
    for start, stop in ((0, 400), (100, 164), (300, 332)):
        counts = Counter(kinds[start:stop])
        expected = FLAN_SHARES[mixture].settings
        for kind in TEMPLATE_TYPES:
            share = expected.get(kind, 0) * (stop - start)
            assert counts[kind] == pytest.approx(share, abs=3), (kind, counts)


def test_shares_can_be_chosen_and_wordings_come_in_turn():
    chosen = chosen_shares(["muffin:zs_opt=3,fs_noopt=1"])
    made = examples(choices(400), shares=chosen)
    kinds = Counter(e.template.split("/")[0] for e in made)
    assert set(kinds) == {ZS_OPT, FS_NOOPT}
    assert kinds[ZS_OPT] == pytest.approx(300, abs=3)
    assert [int(e.template.split("/")[2]) for e in made[:20]] == [*range(10), *range(10)]


def test_options_are_listed_or_left_out_and_labels_become_the_target():
    seen = Counter()
    for record, example in zip(records := choices(600), examples(records), strict=True):
        kind, form, _ = example.template.split("/")
        listed = [option for option in record.options if option in example.prompt]
        if kind in (ZS_NOOPT, FS_NOOPT):
            assert not listed
            assert "{options}" not in example.prompt
            assert example.target == record.targets[0]
            continue
        assert tuple(listed) == record.options
        if example.target == record.targets[0]:
            seen["answer", form == "zero_shot"] += 1
        else:
            seen["label", form == "zero_shot"] += 1
            label = re.escape(example.target)
            assert re.search(rf"^{label}\W{{0,2}} ?{re.escape(record.targets[0])}", _of(example)), (
                example.prompt
            )
    assert min(seen.values()) > 20
    assert len(seen) == 4


def _of(example):
    """The line of the prompt that has the right option of the question, from its start."""
    number = example.meta["problems"][0][len("problem") :]
    return next(line for line in example.prompt.splitlines() if f"right{number}" in line)


def test_the_fixed_form_is_the_suites_and_drawn_forms_are_many():
    assert FIXED.listing(["a", "b"]) == "Options:\n- a\n- b"
    letters = OptionStyle(heading="Pick:", labels=LABELS[2], end=";")
    assert letters.listing(["x", "y"]) == "Pick:\n(A) x;\n(B) y;"
    assert letters.target("y", ["x", "y"]) == "(B)"
    assert letters.target("z", ["x", "y"]) == "z"
    assert FIXED.target("y", ["x", "y"]) == "y"
    from random import Random

    drawn = [drawn_style(Random(i), 4) for i in range(2000)]
    assert {style.heading for style in drawn} == set(HEADINGS)
    assert {style.labels for style in drawn} == {None, *LABELS}
    for i in range(300):  # more items than letters
        labels = drawn_style(Random(i), 30).labels
        assert labels is None or labels.kind == "1"


def test_every_block_of_a_prompt_lists_its_options_in_the_same_way():
    found = 0
    for example in examples(choices(400)):
        if not example.template.startswith("fs_opt/pattern"):
            continue
        starts = set()
        for problem in example.meta["problems"]:
            number = problem[len("problem") :]
            line = next(x for x in example.prompt.splitlines() if f"wrong{number}" in x)
            starts.add(line.partition("wrong")[0])
        assert len(starts) == 1
        found += 1
    assert found > 30


def test_up_to_five_exemplars_and_no_instance_is_its_own():
    numbers = Counter()
    for example in examples(choices(300)):
        asked, *shown = example.meta["problems"]
        assert asked not in shown
        assert len(set(shown)) == len(shown)
        for problem in (asked, *shown):
            assert example.prompt.count(problem) == 1
        if example.template.startswith("fs"):
            numbers[len(shown)] += 1
    assert set(numbers) == {1, 2, 3, 4, 5}
    assert numbers[5] > sum(numbers.values()) / 2


def test_a_problem_with_two_answers_never_shows_one_for_the_other():
    twins = [
        Record(input="same", targets=(word,), fields=(("question", word),), options=("a", "b"))
        for word in ("a", "b")
    ]
    for example in examples(twins * 20):
        assert example.meta["problems"] == ["same"]
        assert example.template.startswith("zs")


def test_the_suites_layout_is_among_the_few_shot_ones():
    forms = Counter()
    for example in examples(choices(600)):
        kind, form, _ = example.template.split("/")
        forms[form] += 1
        if form == "few_shot" and kind == FS_OPT:
            blocks = example.prompt.split("\n\n\n\n")[0]
            question = example.meta["shown"][0]
            assert example.prompt.endswith(f"\n\n{question}")
            assert f"Options:\n- wrong{example.meta['problems'][0][7:]}" in blocks
    assert set(forms) == {"zero_shot", "few_shot", *(f"pattern_{i}" for i in range(len(PATTERNS)))}


def test_reasoning_comes_before_the_answer_and_the_suites_cue_is_met_most():
    cues, reasoned = Counter(), 0
    for record, example in zip(
        records := choices(400, rationale="because"), examples(records, "cot"), strict=True
    ):
        form = example.template.split("/")[1]
        if not form.endswith("_cot"):
            assert "because" not in example.target
            continue
        reasoned += 1
        assert example.target.startswith(record.rationale)
        assert f"So {ANSWER_CUE} " in example.target
        cues[COT_CUE in example.prompt] += 1
        shown = len(example.meta["problems"]) - 1
        assert example.prompt.count("So the answer is") == shown
        assert record.rationale not in example.prompt
    assert reasoned == pytest.approx(400 * 2 / 3, rel=0.1)
    assert cues[True] > cues[False] > 0


def test_equal_seeds_give_equal_examples():
    records = choices(120)
    assert examples(records) == examples(records)
    assert examples(records) != examples(records, seed="other")


def test_prompts_fit_and_the_tokenizer_is_asked_about_once():
    asked = []

    def fits(prompt):
        asked.append(prompt)
        return len(prompt) <= 400

    made = examples(choices(1000), fits=fits)
    few = [e for e in made if e.template.startswith("fs")]
    assert max(len(e.prompt) for e in few) <= 400
    assert len(few) > 450
    assert len(asked) < 1.5 * len(few)


def test_the_length_budget_takes_the_longest_that_fits_and_learns():
    asked = []

    def fits(text):
        asked.append(len(text))
        return len(text) <= 100

    budget = LengthBudget(fits)
    candidates = [("x" * length, length) for length in (500, 95, 40)]
    assert budget.first_fit(candidates) == ("x" * 95, 95)
    assert asked == [500, 95]
    assert budget.first_fit(candidates)[1] == 95
    assert asked == [500, 95, 95], "what is hopeless is not tokenised again"
    assert budget.first_fit([("x" * 101, 101), ("y" * 90, 90), ("z" * 50, 50)])[1] == 50
    for _ in range(20):
        found = budget.first_fit([("y" * 99, 99), ("z" * 50, 50)])
    assert found[1] == 99, "a guess that was too careful is forgotten"
    assert budget.first_fit([("x" * 1000, 0)]) is None


@pytest.mark.parametrize("kind", WORDINGS)
def test_there_are_ten_wordings_of_each_kind_in_both_settings(kind):
    wordings = WORDINGS[kind]
    assert len(set(wordings.zero_shot)) == len(set(wordings.few_shot)) == 10
    fields = {name: f"<{name}>" for name in wordings.places - {"options"}}
    for brief in (False, True):
        prompts = set()
        for template in range(10):
            style = Style(template=template, brief=brief)
            prompt = wordings.prompt(fields, ("o1", "o2"), style)
            assert all(value in prompt for value in fields.values())
            assert ("o1" in prompt) == ("options" in wordings.places)
            bare = wordings.prompt(fields, ("o1", "o2"), Style(template=template, options=None))
            assert "o1" not in bare
            assert "{" not in bare + prompt
            prompts.add(prompt)
        assert len(prompts) == 10


def test_values_are_never_taken_for_places():
    wordings = WORDINGS["question_choice"]
    prompt = wordings.prompt({"question": "{options}{x}"}, ("{question}",), Style(template=0))
    assert prompt == "{options}{x}\nOptions:\n- {question}"


def test_wordings_that_ask_for_different_things_are_refused():
    with pytest.raises(ValueError, match=r"wording '\{b\}': expected places \['a'\]"):
        Wordings(zero_shot=("{a}",), few_shot=("{b}",))
    with pytest.raises(ValueError, match="1 zero-shot and 2 few-shot"):
        Wordings(zero_shot=("{a}",), few_shot=("{a}", "{a}."))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("niv2:zs=1", "no setting 'zs'"),
        ("niv2:zs_opt=-1", "zs_opt is -1.0"),
        ("niv2:zs_opt=0", "all shares are 0"),
        ("niv2:zs_opt=nan", "zs_opt is nan"),
        ("niv2", "expected MIXTURE:SETTING=SHARE"),
        ("niv2:zs_opt", "expected MIXTURE:SETTING=SHARE"),
    ],
)
def test_bad_shares_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        chosen_shares([text])
    with pytest.raises(ValueError, match="given twice"):
        chosen_shares(["cot:zs_opt=1", "cot:fs_opt=1"])


def test_bad_form_shares_are_named():
    for key, value in (("shots", 0), ("reasons", 1.5), ("fixed_options", -0.1)):
        with pytest.raises(ValueError, match=f"{key} is {value}"):
            FormShares(settings={ZS_OPT: 1.0}, **{key: value})
