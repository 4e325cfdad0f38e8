"""Numbers are read from running text exactly."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flan_moe.eval.numbers import as_number, find_numbers, number_text


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("$18", ["18"]),
        ("$ 18.00.", ["18"]),
        ("18.", ["18"]),
        ("It costs $1,234.50, she said.", ["1234.5"]),
        ("20%", ["20"]),
        ("5.0 and 5.00", ["5", "5"]),
        ("1,2,3", ["1", "2", "3"]),
        ("1234,567", ["1234", "567"]),
        ("3 apples... so many", ["3"]),
        ("5...", ["5"]),
        ("10-4", ["10", "4"]),
        ("10 - 4 = 6", ["10", "4", "6"]),
        ("it is -4", ["-4"]),
        ("it is \u22124", ["-4"]),
        ("-$5", ["-5"]),
        ("$-5", ["-5"]),
        (".5", ["1/2"]),
        ("7/8", ["7/8"]),
        ("1/0", []),
        ("15 20", ["15", "20"]),
        ("T5 has no number, v1.1 neither", []),
        ("6th", ["6"]),
        ("two", []),
        ("", []),
    ],
)
def test_numbers_in_text(text, numbers):
    assert find_numbers(text) == [Fraction(number) for number in numbers]


@pytest.mark.parametrize("text", ["18 dollars", "", "five", "1 2", "x", "1/0", "$", "."])
def test_a_text_that_is_not_one_number(text):
    assert as_number(text) is None


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-1e9, max_value=1e9))
def test_written_numbers_are_read_back(value: Decimal):
    text = f"{value:,}"
    assert as_number(text) == Fraction(value)
    assert find_numbers(f"The total is {text}.") == [Fraction(value)]


@given(st.fractions())
def test_number_text_is_read_back(value):
    assert as_number(number_text(value)) == value


def test_a_digit_repeated_for_ever_is_no_number():
    assert find_numbers("9" * 5000) == []


@given(st.text())
def test_any_text_can_be_searched(text):
    assert all(isinstance(number, Fraction) for number in find_numbers(text))
