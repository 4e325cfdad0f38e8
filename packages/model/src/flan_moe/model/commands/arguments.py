"""Types of command-line arguments."""

from __future__ import annotations

import argparse


def text(argument: str) -> str:
    """A text that tokenizers can read: bytes that are not UTF-8 arrive as lone surrogates."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{argument!r}: expected UTF-8") from None
    return argument


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected at least 1")
    return value
