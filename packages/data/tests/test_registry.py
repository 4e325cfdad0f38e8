"""The packaged registry: every task of the collection, found under all its names."""

import json
import lzma
from collections import Counter
from pathlib import Path

import pytest

from flan_moe.data.registry import Registry, load_registry, mixture_totals
from flan_moe.data.registry.listing import count_lines, task_lines, tasks_json
from flan_moe.data.registry.task import task_from_record

REAL = Path(__file__).parents[4] / "shared/data"
needs_tables = pytest.mark.skipif(
    not (REAL / "flan_tasks.json").is_file(), reason=f"needs the published task lists in {REAL}"
)


@pytest.fixture(scope="module")
def registry():
    return load_registry()


def names(found):
    return [task.name for task in found]


def test_totals_are_those_of_the_papers_but_for_two_that_are_explained(registry):
    totals = {total.mixture: total for total in mixture_totals(registry)}
    assert {name: (total.tasks, total.paper) for name, total in totals.items()} == {
        "muffin": (80, 80),
        "t0_sf": (193, 193),
        "niv2": (1556, 1554),
        "cot": (9, 9),
        "all": (1838, 1836),
    }
    assert totals["cot"].samples == 7470 + 2060 + 6910 + 1080 + 36170 + 7110 + 6070 + 2715 + 5145
    assert totals["muffin"].released == 73
    text = "\n".join(count_lines(registry, registry.select()))
    assert "1,556" in text
    assert "+2" in text
    assert "Which two of them" in totals["niv2"].note


def test_sub_mixtures_and_parts(registry):
    parts = Counter((task.part, task.sub_mixture) for task in registry)
    assert parts == {
        ("collection", "flan2021"): 72,
        ("collection", "dialog"): 3,
        ("collection", "program_synthesis"): 5,
        ("collection", "t0"): 193,
        ("collection", "niv2"): 1556,
        ("collection", "cot"): 9,
        ("inversion", "cot"): 9,
        ("inversion", "dialog"): 2,
        ("excluded", "niv2"): 57,
    }
    for task in registry.select(parts=["inversion"]):
        twin = registry[task.twin]
        assert (twin.part, twin.mixture, twin.size) == ("collection", task.mixture, task.size)


def test_every_name_is_its_own_and_every_spelling_finds_its_task(registry):
    assert len({task.name for task in registry}) == len(registry) == 1838 + 11 + 57
    for task in registry:
        for spelling in task.spellings:
            assert registry[spelling] is task


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("ai2_arc/ARC-Easy:1.0.0", "arc_easy"),  # templated dumps
        ("ai2_arc_ARC_Easy_1_0_0", "arc_easy"),  # and what others make of it
        ("huggingface:xsum", "xsum"),
        ("glue/mnli:2.0.0", "mnli_matched"),
        ("stream_creak", "cot_creak"),  # the published table
        ("cot_aqua", "stream_aqua"),  # what the file is called
        ("cot_gsm8k_ii", "cot_input_inversion_gsm8k"),
        ("cot_input_inversion_aqua", "stream_input_inversion_aqua"),
        ("wiki_dialog_ii", "wiki_dialog_input_inversion"),
        ("task074_squad1", "task074_squad1.1_question_generation"),  # cut at the dot
        (
            "task105_story_cloze_rocstories_sentence_generation",
            "task105_story_cloze-rocstories_sentence_generation",
        ),
        ("t0_task_adaptation:cos_e_v1.11_rationale", "cos_e_v1.11_rationale"),
    ],
)
def test_names_that_other_tables_use(registry, spelling, name):
    assert registry[spelling].name == name


def test_an_unknown_name_is_refused_with_a_suggestion(registry):
    assert registry.find("cot_gsm9k") is None
    with pytest.raises(KeyError, match=r"no task 'cot_gsm9k'.*did you mean 'cot_gsm8k'"):
        registry["cot_gsm9k"]


def test_what_is_known_of_a_task(registry):
    task = registry["task1442_doqa_movies_isanswerable"]
    assert (task.mixture, task.types) == ("niv2", ("Answerability Classification",))
    assert (task.size, task.split, task.licences) == (1879, "test", ("CC BY-SA 4.0",))
    assert (task.source, task.languages) == ("doqa", ("English",))
    prompted = registry["qasc_is_correct_1"]
    assert prompted.form == "multiple_choice_separated_options"
    assert (prompted.template.dataset, prompted.template.subset) == ("qasc", None)
    assert prompted.template.template == "is_correct_1"
    assert registry["wmt16_translate_csen"].languages == ("Czech", "English")
    assert registry["task1321_country_continent"].licences == ("MIT",)
    # Of tasks that Natural Instructions' index knows by name only, from the collection's table.
    listed = registry["task1121_alt_ja_khm_translation"]
    assert (listed.types, listed.size) == (("Translation",), 6495)
    assert {"Central Khmer", "Japanese"} < set(listed.languages)


def test_provenance_leaves_out_what_is_not_known(registry):
    assert registry["stream_qed"].provenance == {
        "source": "qed",
        "type": "Passage-Based Question Answering / NLI",
        "licence": "CC BY-SA 3.0; GFDL",
    }
    assert "licence" not in registry["aeslc"].provenance


def test_what_the_release_lacks(registry):
    assert names(task for task in registry if not task.released) == [
        "trivia_qa_wiki_missing",
        "task_master",
        "dmcc_python",
        "dr_repair_error_comments",
        "dr_repair_line_numbers",
        "dr_repair_no_errors",
        "dr_repair_plain_code",
    ]
    assert [task.size for task in registry if not task.released] == [None] * 7


def matching(registry, *starts):
    return sorted(name for name in names(registry) if name.startswith(starts))


def test_overlaps_are_exactly_those_found(registry):
    """Section 4 of the research on the data names these; nothing else may be marked."""
    expected = {
        "mmlu": names(registry.select(parts=["excluded"])),
        "bigbench": ["task062_bigbench_repeat_copy_logic"],
        "gsm8k": ["cot_gsm8k", "cot_input_inversion_gsm8k"],
        "strategyqa": [
            "cot_input_inversion_strategyqa",
            "cot_strategyqa",
            "task167_strategyqa_question_generation",
            "task168_strategyqa_question_decomposition",
            "task169_strategyqa_sentence_generation",
        ],
        "svamp": [
            "task751_svamp_subtraction_question_answering",
            "task752_svamp_multiplication_question_answering",
            "task753_svamp_addition_question_answering",
            "task754_svamp_common-division_question_answering",
        ],
        "asdiv": matching(
            registry,
            *(f"task86{n}_asdiv_" for n in "1234"),
            *(f"task86{n}_mawps_" for n in "5678"),
        ),
        "arc": [
            "arc_challenge",
            "arc_easy",
            "task228_arc_answer_generation_easy",
            "task229_arc_answer_generation_hard",
        ],
        "boolq": [
            "bool_q",
            "task1660_super_glue_question_generation",
            "task1661_super_glue_classification",
            "task380_boolq_yes_no_question",
            "task381_boolq_question_generation",
        ],
        "ai2_science": ["unified_qa_science_inst"],
        "openbookqa": [
            "openbookqa",
            "task1286_openbookqa_question_answering",
            "task1398_obqa_question_generation",
            "task1399_obqa_answer_generation",
            "task1400_obqa_incorrect_answer_generation",
            "task1401_obqa_sentence_generation",
        ],
        "aqua": [
            "stream_aqua",
            "stream_input_inversion_aqua",
            "task750_aqua_multiple_choice_answering",
        ],
        "ai2_arithmetic": ["task745_ai2_arithmetic_questions_arithmetic"],
    }
    found = {
        each.name: sorted(task.name for task, _ in registry.overlapping(each.name))
        for each in registry.sets
    }
    assert found == expected
    assert len(found["asdiv"]) == 8
    assert len(found["mmlu"]) == 57
    every = {name for tasks in expected.values() for name in tasks}
    assert {task.name for task, _ in registry.overlapping("evaluation")} == every
    assert all(overlap.reason for task in registry for overlap in task.overlaps)


def test_sets_have_other_names_and_unknown_ones_are_refused(registry):
    assert registry.set_names("bbh") == ("bigbench",)
    assert registry.set_names("bool_q") == ("boolq",)
    with pytest.raises(ValueError, match="no evaluation set 'mmul'; did you mean 'mmlu'"):
        registry.set_names("mmul")


def test_a_training_split_is_told_from_the_questions_themselves(registry):
    kinds = {task.name: overlap.kind for task, overlap in registry.overlapping("arc")}
    assert kinds == {
        "arc_easy": "training_split",
        "arc_challenge": "training_split",
        "task228_arc_answer_generation_easy": "same_data",
        "task229_arc_answer_generation_hard": "same_data",
    }


def test_filters(registry):
    assert len(registry.select(mixtures=["dialog", "program_synthesis"])) == 8
    assert names(registry.select(mixtures=["muffin"], types=["*coreference*"])) == [
        "definite_pronoun_resolution",
        "winogrande",
        "wnli",
        "wsc",
    ]
    assert Counter(task.split for task in registry.select(mixtures=["niv2"])) == {
        "train": 699,
        "test": 119,
        "excluded": 738,
    }
    assert len(registry.select(splits=["train", "test"])) == 818
    assert len(registry.select(sources=["RACE/*"])) == 16
    french = registry.select(languages=["french"], mixtures=["flan2021"])
    assert names(french) == ["wmt14_enfr"]
    unknown = registry.select(licences=["unknown"])
    assert unknown
    assert not any(task.licences for task in unknown)
    nc = registry.select(licences=["*NC*"], mixtures=["t0_sf"])
    assert {task.source for task in nc} == {"quail", "sciq"}
    clean = registry.select(not_overlapping=["evaluation"])
    dirty = registry.select(overlapping=["evaluation"])
    assert len(clean) + len(dirty) == 1838
    assert len(dirty) == 29 + 5 + 3  # NIV2, Muffin, CoT; beside 3 inversions and 57 excluded
    assert len(registry.select(parts=["inversion", "excluded"], overlapping=["evaluation"])) == 60


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"mixtures": ["muffins"]}, "no mixture 'muffins'; did you mean 'muffin'"),
        ({"splits": ["dev"]}, "no split 'dev'; expected one of excluded, test, train"),
        ({"parts": ["other"]}, "no part 'other'"),
        ({"overlapping": ["x"]}, "no evaluation set 'x'"),
    ],
)
def test_unknown_values_of_closed_filters_are_refused(registry, filters, message):
    with pytest.raises(ValueError, match=message):
        registry.select(**filters)


def test_two_tasks_may_not_share_a_spelling(registry):
    task = registry["rte"]
    with pytest.raises(ValueError, match="'rte' and 'rte' share the name 'rte'"):
        Registry(tasks=(task, task), sets=())


def test_damaged_records_are_refused():
    good = {"name": "x", "mixture": "muffin", "sub_mixture": "flan2021", "source": "x"}
    assert task_from_record(good, ()).size is None
    for change, message in (
        ({"size": "7"}, "size is '7'"),
        ({"types": "QA"}, "types is 'QA'; expected a list"),
        ({"colour": "red"}, "colour"),
        ({"name": 3}, "name is 3; expected text"),
    ):
        with pytest.raises(TypeError, match=message):
            task_from_record(good | change, ())


def test_listings_show_what_matters(registry):
    lines = list(task_lines([registry["cot_gsm8k"], registry["task_master"]]))
    assert "7,470" in lines[1]
    assert "overlaps gsm8k" in lines[1]
    assert "not released" in lines[2]
    assert lines[-1] == "2 tasks"
    (record,) = json.loads(tasks_json([registry["cot_gsm8k"]]))
    assert record["overlaps"][0]["kind"] == "training_split"
    assert record["size"] == 7470


@needs_tables
def test_the_registry_is_what_was_published(registry):
    published = json.loads((REAL / "flan_tasks.json").read_text())
    for mixture, listed in published.items():
        assert names(registry.select(mixtures=[mixture])) == listed
    index = json.loads(lzma.decompress((REAL / "natural_instructions_index.json.xz").read_bytes()))
    found = registry.select(parts=["collection", "excluded"], mixtures=["niv2"])
    assert {task.name for task in found} == set(index)
    for task in found:
        entry = index[task.name]
        assert task.split == entry["default_split"]
        if entry["present"]:
            assert task.size == entry["n_instances"]
            assert list(task.types) == entry["categories"]
            licences = [licence for licence in entry["licence"] if licence != "Unknown"]
            assert list(task.licences) == licences
