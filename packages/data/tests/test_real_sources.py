"""The stand-ins for Muffin and T0-SF and the file of many tasks, as published."""

import json
import random
import tarfile
from collections import Counter
from pathlib import Path

import jinja2
import pytest

from flan_moe.data.forms.wordings import WORDINGS
from flan_moe.data.readers.cot_stand_ins import cot_stand_ins, read_cot_stand_in
from flan_moe.data.readers.muffin import muffin_files, read_muffin_task
from flan_moe.data.readers.promptsource import PromptRenderer, read_templates, t0_tasks
from flan_moe.data.sources.raw import RawOptions, raw_sources

REAL = Path(__file__).parents[4] / "shared/data"
FOLDERS = tuple(f"raw/{name}/" for name in ("arc", "boolq", "cot_fallback", "muffin", "t0_sf"))

pytestmark = pytest.mark.skipif(
    not (REAL / "raw.tar.xz").is_file(), reason=f"needs the real raw files in {REAL}"
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    path = tmp_path_factory.mktemp("real")
    with tarfile.open(REAL / "raw.tar.xz") as tar:
        for member in tar:
            if member.name.removeprefix("./").startswith(FOLDERS):
                tar.extract(member, path, filter="data")
    return path / "raw"


def test_muffin_sets_are_read_whole(raw):
    names = set(json.loads((REAL / "flan_tasks.json").read_text())["muffin"])
    read = [read_muffin_task(group) for group in muffin_files(raw, stand_ins=True)]
    assert len(read) == 20
    for task in read:
        assert task.name in names
        assert task.read == len(task.records) + task.dropped.total()
        assert len(task.records) > 0.99 * task.read
        places = WORDINGS[task.wordings].places
        for record in task.records:
            assert places - {"options"} == {name for name, _ in record.fields}
            assert record.options is None or record.targets[0] in record.options
    # As the folder's README counts them.
    rows = {task.name: task.read for task in read}
    assert (rows["arc_easy"], rows["arc_challenge"], rows["bool_q"]) == (2251, 1119, 2000)


def test_every_template_of_t0_sf_compiles_and_is_named_as_in_flan(raw):
    known = json.loads((REAL / "flan_tasks_extra.json").read_text())["t0_sf_promptsource"]
    named = {}
    for file in sorted((raw / "t0_sf/promptsource").rglob("templates.yaml")):
        templates = read_templates(file)
        for template in templates.templates:
            PromptRenderer(template)
            named[templates.task(template)] = template.name
    assert named == {name: entry["template"] for name, entry in known.items()}


def plainly(template, row, rng):
    """The same by Jinja alone: no sandbox, no counting."""
    environment = jinja2.Environment()
    environment.filters["choice"] = rng.choice
    values = {k: v.replace("|||", "@@@") if isinstance(v, str) else v for k, v in row.items()}
    choices = None
    if template.answer_choices:
        text = environment.from_string(template.answer_choices).render(values)
        choices = [choice.strip().replace("@@@", "|||") for choice in text.split("|||")]
    text = environment.from_string(template.jinja).render({**values, "answer_choices": choices})
    return tuple(part.strip().replace("@@@", "|||") for part in text.split("|||"))


def test_the_sandbox_renders_what_jinja_renders(raw):
    tasks = t0_tasks(raw / "t0_sf")
    assert len(tasks) == 16
    for task in tasks:
        renderer = PromptRenderer(task.template)
        for number, (_, row) in enumerate(task.rows()):
            if number == 25:
                break
            made = renderer.apply(row, random.Random(number))
            assert made.parts == plainly(task.template, row, random.Random(number))
            assert len(made.parts) == 2


def test_esnli_and_qed(raw):
    esnli, qed = map(read_cot_stand_in, cot_stand_ins(raw / "cot_fallback"))
    assert (esnli.read, qed.read) == (9842, 1355)
    assert Counter(record.targets[0] for record in esnli.records).most_common(1)[0][0] == "yes"
    assert qed.dropped["no rationale"] == 183 + 151
    assert all(record.rationale for record in (*esnli.records, *qed.records))


def test_more_than_1400_real_tasks(raw):
    """All of them are found; some of every mixture are opened, in all forms."""
    sources = raw_sources(
        RawOptions(examples=30),
        natural_instructions=REAL / "natural_instructions_wide.jsonl.xz",
        muffin=raw,
        t0_sf=raw / "t0_sf",
        cot_stand_ins=raw / "cot_fallback",
        stand_ins=True,
        inversion=True,
    )
    trained = Counter(source.mixture for source in sources if source.group == "held_in")
    assert trained == {"muffin": 20, "t0_sf": 16, "niv2": 1404, "cot": 4}
    held_out = {source.name for source in sources if source.group == "held_out"}
    extra = json.loads((REAL / "flan_tasks_extra.json").read_text())
    assert held_out == set(extra["niv2_excluded_mmlu"])
    chosen = [source for source in sources if source.mixture != "niv2"][::5] + sources[40::200]
    for source in chosen:
        content = source.open(lambda prompt: len(prompt) <= 6000)
        for example in content.train:
            asked, *shown = example.meta["problems"]
            assert asked not in shown
            assert example.prompt.strip()
            assert example.target.strip()
            assert bool(shown) == example.template.startswith("fs")
