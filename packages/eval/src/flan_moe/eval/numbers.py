"""Numbers in running text, read exactly."""

from __future__ import annotations

import re
from fractions import Fraction

_MINUS = ("-", "\u2212")
_MAX_DIGITS = 1000  # a model that repeats a digit for ever has not written a number

# An optional sign and currency mark, digits (with commas only where they group thousands), a
# decimal part, a denominator. A minus after a word or a digit is a hyphen or a subtraction, and
# digits glued to the end of a word ("T5") are part of a name.
_NUMBER = re.compile(
    r"""
    (?<![\w.])(?P<sign>[-\u2212+]?)[$\u20ac\u00a3]?(?P<inner>[-\u2212]?)
    (?P<digits>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?
    (?P<decimals>\.\d+)?
    (?(digits)|(?(decimals)|(?!)))
    (?:/(?P<denominator>\d+))?
    """,
    re.VERBOSE,
)


def find_numbers(text: str) -> list[Fraction]:
    """All numbers in ``text``, in order.

    Currency marks, thousands commas and a percent sign do not change the value: "$1,234.50" is
    1234.5 and "20%" is 20. "7/8" is one number. A full stop that ends a sentence is not part of it.
    """
    values = (_value(match) for match in _NUMBER.finditer(text))
    return [value for value in values if value is not None]


def as_number(text: str) -> Fraction | None:
    """The value of a text that is one number and no more than "$", "%" or a full stop around it."""
    match = _NUMBER.fullmatch(text.strip().rstrip(".").rstrip("% "))
    return _value(match) if match else None


def _value(match: re.Match[str]) -> Fraction | None:
    digits = (match["digits"] or "0").replace(",", "")
    denominator = match["denominator"] or "1"
    if len(digits) + len(match["decimals"] or "") + len(denominator) > _MAX_DIGITS:
        return None
    if not int(denominator):
        return None
    value = Fraction(digits + (match["decimals"] or "")) / int(denominator)
    negative = (match["sign"] in _MINUS) != bool(match["inner"])
    return -value if negative else value


def number_text(value: Fraction) -> str:
    """A number as people write it: digits and decimals where those are exact, else a fraction."""
    if value.denominator == 1:
        return str(value.numerator)
    places = 0
    while places < 12 and (value * 10**places).denominator != 1:
        places += 1
    scaled = value * 10**places
    if scaled.denominator != 1:
        return f"{value.numerator}/{value.denominator}"
    sign = "-" if scaled < 0 else ""
    digits = str(abs(scaled.numerator)).rjust(places + 1, "0")
    return f"{sign}{digits[:-places]}.{digits[-places:]}"
