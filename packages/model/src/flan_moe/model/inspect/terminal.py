"""Routes as lines for a terminal, readable with and without colour."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flan_moe.model.inspect import palette
from flan_moe.model.inspect.compare import Comparison, LayerComparison
from flan_moe.model.inspect.pieces import short_list, split_space, visible
from flan_moe.model.inspect.routes import LayerRoutes, Routes, Token

_SUBSCRIPTS = str.maketrans("0123456789+-", "₀₁₂₃₄₅₆₇₈₉₊₋")
_INDENT = "  "


@dataclass(frozen=True, kw_only=True)
class TerminalStyle:
    """What the terminal can do.

    Attributes:
        width: columns.
        color: use the 256 colours of xterm.
        unicode: write characters beyond ASCII; without, expert numbers are ``_3`` and what ASCII
            lacks is escaped.
    """

    width: int = 80
    color: bool = False
    unicode: bool = True


class _Cell(NamedTuple):
    """A word of a wrapped paragraph: a space before it, coloured text, plain text after it."""

    space: str
    text: str
    after: str
    expert: int | None
    ends_line: bool = False


def routes_lines(routes: Routes, style: TerminalStyle) -> list[str]:
    """A paragraph per sparse layer: its tokens with their experts, then loads.

    Each token is followed by the numbers of its experts, the heaviest first and no more than two,
    and coloured by the first. ``-`` is no expert.
    """
    lines = [_short(routes.model, style), *_source_lines(routes, style)]
    for layer in routes.layers:
        tokens = routes.tokens(layer.stack)
        cells = [
            _token_cell(token, _numbers(experts, style), experts[0] if experts else None, style)
            for token, experts in zip(tokens, layer.experts, strict=True)
        ]
        lines += ["", _layer_title(layer), *_wrap(cells, style), *_load_lines(layer, style)]
    lines += ["", _encodable(_key(style), style)]
    return lines


def comparison_lines(comparison: Comparison, style: TerminalStyle) -> list[str]:
    """A table of the layers, then each layer's text with what changed its first expert.

    Such a token is followed by both numbers, the first model's first.
    """
    ours, theirs = comparison.ours, comparison.theirs
    lines = [
        f"A: {_short(ours.model, style)}",
        f"B: {_short(theirs.model, style)}",
        *_source_lines(ours, style),
        "",
        f"{'layer':<12} {'tokens':>6} {'same first':>11} {'same set':>9} {'load rank corr.':>16} "
        f"{'load JS, nats':>14}",
    ]
    for layer in comparison.layers:
        rank = layer.rank_correlation
        lines.append(
            f"{_where(layer.ours):<12} {len(layer.ours.experts):>6} {layer.same_first:>11.1%} "
            f"{layer.same_set:>9.1%} {'undefined' if rank is None else f'{rank:.3f}':>16} "
            f"{layer.load_divergence:>14.4f}"
        )
    for layer in comparison.layers:
        if not layer.other_first:
            continue
        title = f"{_where(layer.ours)}: other first expert at {len(layer.other_first)} tokens"
        lines += ["", title, *_wrap(_changed_cells(ours, layer, style), style)]
    return lines


def _changed_cells(routes: Routes, layer: LayerComparison, style: TerminalStyle) -> list[_Cell]:
    changed = set(layer.other_first)
    cells = []
    for position, token in enumerate(routes.tokens(layer.ours.stack)):
        if position not in changed:
            cells.append(_token_cell(token, "", None, style))
            continue
        a, b = layer.ours.first[position], layer.theirs.first[position]
        arrow = "→" if style.unicode else ">"
        numbers = arrow.join(_numbers([] if e is None else [e], style) for e in (a, b))
        cells.append(_token_cell(token, numbers, b, style))
    return cells


def _source_lines(routes: Routes, style: TerminalStyle) -> list[str]:
    answer = "answer" if routes.generated else "target"
    room = max(style.width - 10, 10)
    return [
        f"{name:<8}{_short(text, style, room)}"
        for name, text in (("text", routes.text), (answer, routes.target))
    ]


def _short(text: str, style: TerminalStyle, room: int | None = None) -> str:
    """One safe line; cut where it is longer than the room."""
    text = _encodable(visible(text), style)
    if room is None or _columns(text) <= room:
        return text
    kept, used = "", 0
    for character in text:
        used += _columns(character)
        if used > room - 3:
            break
        kept += character
    return f"{kept}..."


def _where(layer: LayerRoutes) -> str:
    return f"{layer.stack} {layer.layer}"


def _layer_title(layer: LayerRoutes) -> str:
    tokens = len(layer.experts)
    dropped = f", {len(layer.dropped)} without expert" if layer.dropped else ""
    return f"{_where(layer)}: {tokens} tokens over {layer.num_experts} experts{dropped}"


def _load_lines(layer: LayerRoutes, style: TerminalStyle) -> list[str]:
    used = [(expert, load) for expert, load in enumerate(layer.load) if load]
    label, after = (" {} ", " {}") if style.color else ("{}:", "{}")
    cells = [_Cell("  ", label.format(e), after.format(load), e) for e, load in used]
    idle = layer.num_experts - len(used)
    cells.insert(0, _Cell("", "", "tokens per expert:", None))
    if idle:
        cells.append(_Cell("  ", "", f"idle: {idle}", None))
    facts = (
        f"{_INDENT}router entropy {layer.router_entropy:.2f} of at most "
        f"{math.log(layer.num_experts):.2f} nats, effective experts {layer.effective_experts:.1f}"
    )
    return [*_wrap(cells, style), facts]


def _key(style: TerminalStyle) -> str:
    example = f"word{_numbers([3, 1], style)}"
    color = ", coloured by the heaviest" if style.color else ""
    return f"{example}: experts 3 and 1, the heaviest first{color}; {_numbers([], style)}: none"


def _token_cell(token: Token, after: str, expert: int | None, style: TerminalStyle) -> _Cell:
    space, word = split_space(token.piece)
    text = _encodable(visible(word), style)
    return _Cell(space, text, after, expert, ends_line=word.endswith("\n"))


def _numbers(experts: Sequence[int], style: TerminalStyle) -> str:
    text = short_list(experts) or "-"
    return text.translate(_SUBSCRIPTS) if style.unicode else f"_{text}"


def _wrap(cells: Iterable[_Cell], style: TerminalStyle) -> list[str]:
    """Cells in lines of the terminal's width; a cell is never broken."""
    lines, line, used = [], _INDENT, len(_INDENT)
    for cell in cells:
        columns = _columns(cell.text) + _columns(cell.after)
        if used > len(_INDENT) and used + len(cell.space) + columns > style.width:
            lines.append(line)
            line, used = _INDENT, len(_INDENT)
        space = cell.space if used > len(_INDENT) else ""
        line += space + _painted(cell, style) + cell.after
        used += len(space) + columns
        if cell.ends_line:
            lines.append(line)
            line, used = _INDENT, len(_INDENT)
    return [*lines, line] if used > len(_INDENT) else lines


def _painted(cell: _Cell, style: TerminalStyle) -> str:
    if not style.color or cell.expert is None or not cell.text:
        return cell.text
    hue = palette.HUES[palette.hue_index(cell.expert)]
    background = palette.terminal_color(palette.tint(hue, palette.LIGHT_PAPER))
    # Black by number 16: the numbers below are the user's own colours and need not be readable.
    more = ("", "4;", "1;", "1;4;")[palette.style_index(cell.expert)]
    return f"\x1b[{more}38;5;16;48;5;{background}m{cell.text}\x1b[0m"


def _encodable(text: str, style: TerminalStyle) -> str:
    if style.unicode:
        return text
    return (
        text.replace("↵", "\\n")
        .replace("␣", "_")
        .encode("ascii", "backslashreplace")
        .decode("ascii")
    )


def _columns(text: str) -> int:
    """Columns of a terminal: two for wide characters, none for combining ones."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
