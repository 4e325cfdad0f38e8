"""What counts as the same answer."""

import pytest

from flan_moe.eval import Loglikelihood
from flan_moe.eval.scoring import choose, exact_match, normalize_text


@pytest.mark.parametrize(
    ("answer", "target"),
    [("18.0", "18"), ("1,000", "1000"), ("$5", "5"), ("20%", "20"), ("1/2", "0.5")],
)
def test_numbers_are_compared_by_value(answer, target):
    assert exact_match(answer, [target], kind="number")


@pytest.mark.parametrize(("answer", "target"), [("10", "1"), ("-5", "5"), ("7/8", "7")])
def test_other_numbers_are_wrong(answer, target):
    assert not exact_match(answer, [target], kind="number")


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("Blue Whale.", "blue whale"),
        ("  blue\twhale ", "blue whale"),
        ("“blue whale”.", "blue whale"),
        ("'blue whale.'", "Blue whale"),
        ("ｂｌｕｅ", "blue"),
        ("] ]", "] ]"),
    ],
)
def test_texts_are_compared_in_normalised_form(answer, target):
    assert exact_match(answer, [target], kind="text")


@pytest.mark.parametrize(
    ("answer", "target"),
    [("the whale", "whale"), ("] ]", "]]"), ("(a)", "a"), ("whales", "whale"), ("", "whale")],
)
def test_other_texts_are_wrong(answer, target):
    assert not exact_match(answer, [target], kind="text")


def test_no_answer_is_wrong_even_where_the_target_is_empty():
    assert not exact_match(None, [""], kind="text")


def test_normalising_twice_changes_nothing():
    for text in ('"a."', "'.", "..", "' '", "A  b.. "):
        assert normalize_text(normalize_text(text)) == normalize_text(text)


def test_the_per_token_choice_does_not_favour_short_options():
    scores = Loglikelihood((-3.0, -4.0), (1, 4))
    assert choose(scores) == (0, 1)


def test_of_equal_options_the_first_is_chosen():
    assert choose(Loglikelihood((-1.0, -1.0, -2.0), (1, 1, 1))) == (0, 0)
