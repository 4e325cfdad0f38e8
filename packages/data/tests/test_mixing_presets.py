"""Each preset, on a dozen tasks of round sizes, against shares worked out by hand."""

import pytest

from flan_moe.data.mixing.apply import apply_mixture
from flan_moe.data.mixing.load import load_mixture, preset_names
from flan_moe.data.mixing.shares import TaskSize

SIZES = {
    "rte": ("muffin", 10_000),
    "snli": ("muffin", 500_000),
    "arc_easy": ("muffin", 0),  # only where a test gives it a size
    "wiki_dialog": ("muffin", 1_000_000),
    "wiki_dialog_input_inversion": ("muffin", 1_000_000),
    "qrecc": ("muffin", 10_000),
    "qrecc_input_inversion": ("muffin", 10_000),
    "dr_repair_plain_code": ("muffin", 1_000),
    "sciq_Direct_Question": ("t0_sf", 5_000),
    "amazon_polarity_user_satisfied": ("t0_sf", 3_600_000),
    "task001_quoref_question_generation": ("niv2", 1_000),
    "task002_quoref_answer_generation": ("niv2", 6_500),
    "task228_arc_answer_generation_easy": ("niv2", 0),
    "task664_mmmlu_answer_generation_abstract_algebra": ("niv2", 100),
    "cot_gsm8k": ("cot", 7_000),
    "cot_input_inversion_gsm8k": ("cot", 7_000),
    "cot_esnli": ("cot", 120_000),
}

# FLAN 2021: 10,000 and min(500,000, 30,000).
FLAN_2021 = {"rte": 10 / 40, "snli": 30 / 40}
# Dialog: min(1,000,000, 200,000), three tenths of it, 10,000, and three tenths of that.
DIALOG = {
    "wiki_dialog": 200 / 273,
    "wiki_dialog_input_inversion": 60 / 273,
    "qrecc": 10 / 273,
    "qrecc_input_inversion": 3 / 273,
}
# Muffin: all of those under 30,000, and 1,000 programs.
MUFFIN = {
    "rte": 10 / 93,
    "snli": 30 / 93,
    "wiki_dialog": 30 / 93,
    "wiki_dialog_input_inversion": 9 / 93,
    "qrecc": 10 / 93,
    "qrecc_input_inversion": 3 / 93,
    "dr_repair_plain_code": 1 / 93,
}
# T0-SF: 5,000 and min(3,600,000, 20,000).
T0_SF = {"sciq_Direct_Question": 5 / 25, "amazon_polarity_user_satisfied": 20 / 25}
# NIV2: 1,000 and min(6,500, 5,000).
NIV2 = {
    "task001_quoref_question_generation": 1 / 6,
    "task002_quoref_answer_generation": 5 / 6,
}
# CoT: 7,000, three tenths of it, and min(120,000, 100,000).
COT = {
    "cot_gsm8k": 70 / 1091,
    "cot_input_inversion_gsm8k": 21 / 1091,
    "cot_esnli": 1000 / 1091,
}

WORKED = {
    "flan2022": [(0.40, FLAN_2021), (0.32, T0_SF), (0.20, NIV2), (0.05, COT), (0.03, DIALOG)],
    "flan2022_clean": [
        (0.40, FLAN_2021),
        (0.32, T0_SF),
        (0.20, NIV2),
        (0.05, {"cot_esnli": 1.0}),
        (0.03, DIALOG),
    ],
    "flan_palm_a": [
        (46 / 99.9, MUFFIN),
        (27.9 / 99.9, T0_SF),
        (1.8 / 99.9, COT),
        (24.2 / 99.9, NIV2),
    ],
    "flan_palm_b": [(0.52, MUFFIN), (0.15, T0_SF), (0.03, COT), (0.30, NIV2)],
    "muffin": [(1.0, MUFFIN)],
    "t0_sf": [(1.0, T0_SF)],
    "niv2": [(1.0, NIV2)],
    "cot": [(1.0, COT)],
}


def sizes(**more):
    known = {name: (mixture, more.get(name, count)) for name, (mixture, count) in SIZES.items()}
    return [
        TaskSize(name=name, mixture=mixture, count=count)
        for name, (mixture, count) in known.items()
        if count
    ]


def test_no_preset_is_without_a_worked_example():
    assert set(WORKED) == set(preset_names())


@pytest.mark.parametrize("preset", WORKED)
def test_shares_are_those_worked_out_by_hand(preset):
    found = apply_mixture(load_mixture(preset), sizes())
    expected = {
        name: weight * part for weight, tasks in WORKED[preset] for name, part in tasks.items()
    }
    got = {share.task.name: share.share for share in found if share.share > 0}
    assert got == pytest.approx(expected)
    assert sum(got.values()) == pytest.approx(1)


def test_the_clean_preset_holds_out_what_overlaps_and_gives_its_share_to_the_rest():
    tasks = sizes(arc_easy=20_000, task228_arc_answer_generation_easy=5_000)
    plain = {s.task.name: s for s in apply_mixture(load_mixture("flan2022"), tasks)}
    clean = {s.task.name: s for s in apply_mixture(load_mixture("flan2022_clean"), tasks)}
    assert plain["arc_easy"].share == pytest.approx(0.4 * 20 / 60)
    assert plain["snli"].share == pytest.approx(0.4 * 30 / 60)
    assert clean["snli"].share == pytest.approx(0.4 * 30 / 40)
    assert {name for name, share in clean.items() if share.held_out} == {
        "arc_easy",
        "task228_arc_answer_generation_easy",
        "task664_mmmlu_answer_generation_abstract_algebra",
        "cot_gsm8k",
        "cot_input_inversion_gsm8k",
    }


@pytest.mark.parametrize("preset", ["flan2022", "flan_palm_a"])
def test_settings_have_quarters_or_halves(preset):
    four = {"zs_opt": 10, "zs_noopt": 20, "fs_opt": 30, "fs_noopt": 40}
    two = {"zs_opt": 10, "fs_opt": 90}
    tasks = [
        TaskSize(name="rte", mixture="muffin", count=100, types=four),
        TaskSize(name="sciq_Direct_Question", mixture="t0_sf", count=100, types=four),
        TaskSize(name="qrecc", mixture="muffin", count=100, types=two),
        TaskSize(name="cot_ecqa", mixture="cot", count=100, types=two),
        TaskSize(name="task001_quoref_question_generation", mixture="niv2", count=100, types=two),
    ]
    for share in apply_mixture(load_mixture(preset), tasks):
        parts = {name: part / share.share for name, part in share.types.items()}
        assert parts == pytest.approx(dict.fromkeys(share.task.types, 1 / len(share.task.types)))
