"""promptsource templates: its semantics on rows worked by hand, and nothing else gets out."""

import json
import lzma
import time
from pathlib import Path
from random import Random

import pytest
from jinja2.exceptions import SecurityError

from flan_moe.data.readers import RawDataError
from flan_moe.data.readers.promptsource import (
    PromptRenderer,
    PromptTemplate,
    read_t0_task,
    read_templates,
    t0_tasks,
)
from flan_moe.data.readers.promptsource.filters import highlight, most_frequent
from flan_moe.data.readers.promptsource.sandbox import CompiledTemplate, TemplateRefusedError
from flan_moe.data.readers.promptsource.work import TemplateTooCostlyError
from flan_moe.data.sources.answers import answer_options

ROW = {
    "question": "Where do fish live",
    "choices": ["sky", "sea", "tree"],
    "answer": "sea",
    "label": 1,
    "answers": {"text": ["the sea"]},
    "pipes": "a ||| b",
}


def template(jinja, answer_choices=None, **more):
    return PromptTemplate(
        name="n",
        jinja=jinja,
        answer_choices=answer_choices,
        choices_in_prompt=False,
        file=Path("templates.yaml"),
        **more,
    )


def apply(jinja, answer_choices=None, row=ROW, seed=0):
    return PromptRenderer(template(jinja, answer_choices)).apply(row, Random(seed))


@pytest.mark.parametrize(
    ("jinja", "choices", "parts"),
    [
        (
            '{{ question }}\n- {{ answer_choices | join("\\n- ") }}\n|||\n{{ answer }}',
            '{{ choices | join("|||") }}',
            ("Where do fish live\n- sky\n- sea\n- tree", "sea"),
        ),
        (
            "{% for k in range(choices | length) %}\n{{'. '.join([answer_choices[k], choices[k]])}}"
            "\n{% endfor %}|||{{ answer_choices[choices.index(answer)] }}",
            "A ||| B ||| C",
            ("A. sky\n\nB. sea\n\nC. tree", "B"),
        ),
        (
            "{{ question | trim('?') | replace('fish', answer_choices | join(' or ')) }}{{ \"?\" }}"
            "|||{{ answer_choices[label] }}",
            "Yes ||| No",
            ("Where do Yes or No live?", "No"),
        ),
        (
            "{% set words = question.split(' ') %}{{ words[1:] | join(' ') }} ~ {{ words | last }}"
            "|||{{ answers.text | first | capitalize }}",
            None,
            ("do fish live ~ live", "The sea"),
        ),
        ("{{ pipes }} ||| {{ pipes | upper }}", None, ("a ||| b", "A ||| B")),
        ("{{ question }}", None, ("Where do fish live",)),
        ("{% if label == 0 %}{{ question }} ||| x{% endif %}", None, ("",)),
        ("a|||b|||c", None, ("a", "b", "c")),
        ("{{ [3, 1] | sort | join(',') }}{{ none_such_attribute.x if false }}|||{{ 1 + label }}",
         None, ("1,3", "2")),
        ("{{ 'x' ~ label ~ question[0]|lower }}|||{{ answers | length }}", None, ("x1w", "1")),
    ],
)  # fmt: skip
def test_goldens_worked_by_hand(jinja, choices, parts):
    assert apply(jinja, choices).parts == parts


def test_choices_are_stripped_and_keep_separators_of_the_row():
    made = apply("q ||| t", "{{ pipes }} ||| {{ answer }} |||")
    assert made.choices == ("a ||| b", "sea", "")


def test_random_choices_are_of_the_row_and_the_seed():
    drawn = {apply("q|||{{ choices | choice }}", seed=i).parts[1] for i in range(40)}
    assert drawn == set(ROW["choices"])
    assert apply("q|||{{ choices | choice }}", seed=3) == apply("q|||{{ choices|choice }}", seed=3)


def test_the_filters_of_promptsource():
    assert most_frequent(["b", "a", "c", "a", "b"]) == ["b", "a"]
    assert most_frequent([]) is None
    assert highlight("x") == "<span style='color: #F08080'>x</span>"
    row = {"votes": ["x", "y", "y"]}
    made = apply("{{ votes | most_frequent | choice | highlight }}|||{{ votes[0] }}", row=row)
    assert made.parts == ("<span style='color: #F08080'>y</span>", "x")


HOSTILE_REFUSED = [
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for x in range(3) recursive %}{{ loop([1]) }}{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "{% set x %}{{ question }}{% endset %}",
    "{% filter upper %}x{% endfilter %}",
    "{{ question | attr('__class__') }}",
    "{{ question | pprint }}",
    "{{ question | format(1) }}",
    "{{ 'x' | center(10**9) }}",
    "{{ question",
    "x" * 20_001,
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
]


@pytest.mark.parametrize("source", HOSTILE_REFUSED, ids=lambda source: source[:30])
def test_what_prompts_do_not_need_is_refused_before_it_runs(source):
    with pytest.raises(TemplateRefusedError):
        CompiledTemplate(source)


HOSTILE_RUNNING = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(10**15) %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ [0] * 10**10 }}",
    "{{ '%0999999999d' % 1 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{% set x = 'ab' %}" + "{% set x = x ~ x %}" * 60 + "{{ x | length }}",
    "{% set x = 'ab' %}" + "{% set x = x + x %}" * 60 + "{{ x | length }}",
    "{% set x = 'ab' %}" + "{% set x = x.replace('', x) %}" * 20 + "{{ x | length }}",
    "{% set x = 'ab' %}" + "{% set x = x | replace('', x) %}" * 20 + "{{ x | length }}",
    "{% set x = 'ab' %}" + "{% set x = x.join([x, x, x]) %}" * 60 + "{{ x | length }}",
    "{% set x = [1] %}" + "{% set x = [x, x] %}" * 60 + "{{ x | length }}",
    "{% set x = [1] %}" + "{% set x = (x, x) %}" * 60 + "{{ x == x }}",
    "{% set x = {'a': 1} %}" + "{% set x = {'a': x, 'b': x} %}" * 60 + "{{ x | length }}",
    "{% set n = 9 %}" + "{% set n = n * n %}" * 60 + "{{ n }}",
    "{% for i in range(90000) %}{{ question }}{{ question }}{{ question }}{% endfor %}",
]


@pytest.mark.parametrize("source", HOSTILE_RUNNING, ids=lambda source: source[:45])
def test_endless_work_is_stopped_soon(source):
    compiled = CompiledTemplate(source)
    before = time.perf_counter()
    with pytest.raises((TemplateTooCostlyError, OverflowError, ValueError)):
        compiled.render(ROW, Random(0))
    assert time.perf_counter() - before < 5


@pytest.mark.parametrize(
    "source",
    [
        "{{ question.__class__.__mro__ }}",
        "{{ question['__class__']['__mro__'] }}",
        "{{ range.__self__ }}",
        "{{ choices.append('x') }}",
        "{{ choices.__init__.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ question.format(1) }}",
        "{{ question.ljust(10) }}",
        "{{ question.encode() }}",
        "{{ cycler }}{{ lipsum }}{{ joiner }}{{ namespace }}",
    ],
)
def test_nothing_of_python_is_reached(source):
    """The sandbox refuses it, or it is empty, as what is undefined is in Jinja."""
    row = {**ROW, "choices": ["sky"]}
    try:
        text = CompiledTemplate(source).render(row, Random(0))
    except (TemplateRefusedError, SecurityError):
        text = ""
    assert text == ""
    assert row["choices"] == ["sky"]


YAML = """\
dataset: fish
subset: v1
templates:
  0-0: !Template
    answer_choices: '{{ choices | join("|||") }}'
    id: 0-0
    jinja: '{{ question }}? ||| {{ answer }}'
    metadata: !TemplateMetadata
      choices_in_prompt: false
      languages: [en]
    name: Ask - it (plainly)
    reference: ''
  0-1: !Template
    answer_choices: null
    jinja: '{% if label %}{{ question }} or else?{% endif %} ||| {{ choices[label] }}'
    metadata: !TemplateMetadata {choices_in_prompt: true}
    name: other
"""


def write_set(path, rows=None, yaml=YAML):
    (path / "templates" / "fish" / "v1").mkdir(parents=True)
    (path / "templates" / "fish" / "v1" / "templates.yaml").write_text(yaml)
    (path / "rows" / "fish" / "v1").mkdir(parents=True)
    rows = rows or [
        {**ROW, "question": f"Question {i}", "label": i % 3, "answer": ROW["choices"][i % 3]}
        for i in range(30)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "rows" / "fish" / "v1" / "train-0.jsonl.xz").write_bytes(lzma.compress(text.encode()))
    return path


def test_a_set_becomes_a_task_per_template(tmp_path):
    first, second = t0_tasks(write_set(tmp_path))
    assert (first.name, second.name) == ("fish_v1_Ask_it_plainly_", "fish_v1_other")
    task = read_t0_task(first)
    assert (task.read, len(task.records), task.dropped) == (30, 30, {})
    record = task.records[1]
    assert record.input == "Question 1"
    assert record.targets == ("sea",)
    assert record.options == ("sky", "sea", "tree")
    assert dict(record.fields) == {"text": "Question 1?"}
    assert answer_options(task.records)[1:] == ("multiple_choice", round(1 / 3, 6))
    other = read_t0_task(second)
    assert other.options_listed
    assert other.dropped == {"template has no prompt or target for the row": 10}
    assert len(other.records) == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("!TemplateMetadata", "!Other"), "not a file of templates: .*!Other"),
        (("!Template\n", "!!python/object/apply:os.system\n"), "not a file of templates"),
        (
            ("dataset: fish", "dataset: /fish"),
            "dataset or subset is '/fish'; expected a plain name",
        ),
        (("dataset: fish", "dataset: ../fish"), "dataset or subset is '../fish'"),
        (("dataset: fish", "dataset: '*'"), r"dataset or subset is '\*'"),
        (("dataset: fish", "dataset: fish\ndataset: cow"), "key 'dataset' is given twice"),
        (("dataset: fish", "a: &a {b: 1}\n<<: [*a, *a]\ndataset: fish"), "expected no merge keys"),
        (("dataset: fish", "set: fish"), "dataset and subset: expected text"),
        (("name: other", "name: Ask - it (plainly)"), "is there twice"),
        (("    name: other", "    title: x"), "expected the texts 'name' and 'jinja'"),
        (("templates:", "others:"), "expected a mapping with 'dataset' and 'templates'"),
        (("    answer_choices: null", "    answer_choices: [a]"), "answer_choices is"),
    ],
)
def test_a_damaged_template_file_is_named(tmp_path, change, message):
    file = tmp_path / "templates.yaml"
    assert change[0] in YAML
    file.write_text(YAML.replace(*change))
    with pytest.raises(RawDataError, match=f"templates.yaml: .*{message}|{message}") as caught:
        read_templates(file)
    assert str(file) in str(caught.value)


def test_rows_of_another_set_and_damaged_rows_are_named(tmp_path):
    tasks = t0_tasks(write_set(tmp_path / "a", rows=[{"question": "x", "choices": []}]))
    with pytest.raises(RawDataError, match="reads the column 'answer'; the rows have choices, que"):
        read_t0_task(tasks[0])
    cut = write_set(tmp_path / "b")
    file = next(cut.rglob("*.xz"))
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(RawDataError, match=r"train-0\.jsonl\.xz: cannot be decompressed"):
        read_t0_task(t0_tasks(cut)[0])
    reserved = write_set(tmp_path / "c", rows=[{**ROW, "answer_choices": "x"}])
    with pytest.raises(RawDataError, match="have a column 'answer_choices'"):
        read_t0_task(t0_tasks(reserved)[0])
    (tmp_path / "d").mkdir()
    with pytest.raises(RawDataError, match="d: expected promptsource files"):
        t0_tasks(tmp_path / "d")


def test_a_template_that_fails_everywhere_or_works_too_much_is_named(tmp_path):
    failing = YAML.replace("{{ choices[label] }}", '{{ choices.index("none") }}')
    with pytest.raises(RawDataError, match=r"'other': no usable row among 30; first ValueError"):
        read_t0_task(t0_tasks(write_set(tmp_path / "a", yaml=failing))[1])
    costly = YAML.replace("{{ choices[label] }}", "{% for i in range(10**9) %}x{% endfor %}")
    with pytest.raises(RawDataError, match=r"'other': it wants to do more than .* at .*:1"):
        read_t0_task(t0_tasks(write_set(tmp_path / "b", yaml=costly))[1])
    refused = YAML.replace("{{ choices[label] }}", '{% include "x" %}')
    with pytest.raises(RawDataError, match="'other': line 1: Include is not for prompts"):
        read_t0_task(t0_tasks(write_set(tmp_path / "c", yaml=refused))[1])
