"""The check that sizes are sizes."""

from __future__ import annotations


def check_sizes(**sizes: int) -> None:
    """Refuse what is not a positive integer.

    Raises:
        ValueError: naming the size, its value and what was expected.
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name}={size!r}: expected an integer of at least 1")
