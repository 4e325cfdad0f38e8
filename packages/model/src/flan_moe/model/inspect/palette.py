"""Colours of experts. Beyond eight they repeat with another line style; the number decides.

The hues are Okabe and Ito's (2008), told apart with any kind of colour vision; black is left to
text, and grey takes its place.
"""

from __future__ import annotations

Rgb = tuple[int, int, int]

HUES: tuple[Rgb, ...] = (
    (0xE6, 0x9F, 0x00),
    (0x56, 0xB4, 0xE9),
    (0x00, 0x9E, 0x73),
    (0xF0, 0xE4, 0x42),
    (0x00, 0x72, 0xB2),
    (0xD5, 0x5E, 0x00),
    (0xCC, 0x79, 0xA7),
    (0x99, 0x99, 0x99),
)
LINE_STYLES = ("solid", "dashed", "dotted", "double")
LIGHT_PAPER: Rgb = (0xFF, 0xFF, 0xFF)
LIGHT_INK: Rgb = (0x1B, 0x1F, 0x24)
DARK_PAPER: Rgb = (0x14, 0x17, 0x1C)
DARK_INK: Rgb = (0xE8, 0xEA, 0xED)


def hue_index(expert: int) -> int:
    """Index into `HUES`."""
    return expert % len(HUES)


def style_index(expert: int) -> int:
    """Index into `LINE_STYLES`."""
    return expert // len(HUES) % len(LINE_STYLES)


def tint(hue: Rgb, paper: Rgb) -> Rgb:
    """A background of this hue on which the paper's ink can be read."""
    share = 0.45 if paper == LIGHT_PAPER else 0.35
    return tuple(round(share * h + (1 - share) * p) for h, p in zip(hue, paper, strict=True))


def css_color(color: Rgb) -> str:
    """``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def terminal_color(color: Rgb) -> int:
    """The nearest of the 6 x 6 x 6 colours of a 256-colour terminal."""
    levels = (0, 95, 135, 175, 215, 255)
    r, g, b = (min(range(6), key=lambda i: abs(levels[i] - channel)) for channel in color)
    return 16 + 36 * r + 6 * g + b


def contrast(a: Rgb, b: Rgb) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.1, section 1.4.3)."""
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(color: Rgb) -> float:
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (channel / 255 for channel in color)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
