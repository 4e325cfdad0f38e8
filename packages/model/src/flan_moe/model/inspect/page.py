"""Routes as one HTML page: no script, no other file, every text escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from flan_moe.model.inspect import palette
from flan_moe.model.inspect.compare import Comparison, LayerComparison
from flan_moe.model.inspect.pieces import short_list, split_space, visible
from flan_moe.model.inspect.routes import LayerRoutes, Routes, Token

# Nothing may be fetched or run, whatever a text holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_LINE_END = "↵"
_MATRIX_ROWS = 2000


def routes_page(routes: Routes) -> str:
    """The whole page: per sparse layer the text with its experts, and the experts' loads.

    A token has the colour and the number of its heaviest expert; hover, tap or tab shows all its
    experts and weights. Under each stack a table has the experts of every token in every layer.
    """
    source = _source(routes, [("model", routes.model)])
    parts = [source, _navigation(routes.layers)]
    for stack in ("encoder", "decoder"):
        layers = [layer for layer in routes.layers if layer.stack == stack]
        if not layers:
            continue
        parts.append(f"<h2>{stack}</h2>\n{_reading(stack)}")
        parts += [_layer_section(layer, routes.tokens(stack)) for layer in layers]
        parts.append(_matrix(layers, routes.tokens(stack)))
    return _document(f"Routes of {routes.model}", parts)


def comparison_page(comparison: Comparison) -> str:
    """The whole page: agreement per layer, then each layer's text with what changed.

    A token whose first expert is the same on both sides is plain; another has the colour of the
    second model's expert and both numbers.
    """
    ours, theirs = comparison.ours, comparison.theirs
    parts = [
        _source(ours, [("A", ours.model), ("B", theirs.model)]),
        _navigation(layer.ours for layer in comparison.layers),
        _agreement(comparison.layers),
        *(_changes_section(layer, ours.tokens(layer.ours.stack)) for layer in comparison.layers),
    ]
    return _document(f"Routes of {ours.model} and {theirs.model}", parts)


def _document(title: str, parts: Iterable[str]) -> str:
    style = files("flan_moe.model.inspect").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_shown(title)}</title>\n<style>\n{style}{_expert_styles()}</style>\n</head>\n"
        f"<body>\n<h1>{_shown(title)}</h1>\n{''.join(parts)}</body>\n</html>\n"
    )


def _expert_styles() -> str:
    hues = [
        f".h{index} {{ --hue: {palette.css_color(hue)}; "
        f"--light: {palette.css_color(palette.tint(hue, palette.LIGHT_PAPER))}; "
        f"--dark: {palette.css_color(palette.tint(hue, palette.DARK_PAPER))}; }}\n"
        for index, hue in enumerate(palette.HUES)
    ]
    lines = [
        f".s{index} {{ --style: {style}; }}\n" for index, style in enumerate(palette.LINE_STYLES)
    ]
    return "".join([*hues, *lines])


def _source(routes: Routes, models: Sequence[tuple[str, str]]) -> str:
    answer = "answer" if routes.generated else "target"
    rows = [*models, ("text", routes.text), (answer, routes.target)]
    cells = "".join(f"<dt>{name}</dt><dd>{_shown(value, '')}</dd>\n" for name, value in rows)
    return f"<dl>\n{cells}</dl>\n"


def _navigation(layers: Iterable[LayerRoutes]) -> str:
    links = "".join(
        f'<a href="#{layer.stack}-{layer.layer}">{layer.stack} {layer.layer}</a>\n'
        for layer in layers
    )
    return f"<nav>{links}</nav>\n"


def _reading(stack: str) -> str:
    if stack == "encoder":
        return ""
    return (
        '<p class="soft">Tokens as the decoder reads them: the start token, then what it had '
        "written. The experts of a token serve to predict the next one.</p>\n"
    )


def _layer_section(layer: LayerRoutes, tokens: Sequence[Token]) -> str:
    spans = [
        _token(
            tokens[position],
            position,
            experts[0] if experts else None,
            short_list(experts) or "–",
            _tip(layer, position),
        )
        for position, experts in enumerate(layer.experts)
    ]
    lost = f", {len(layer.dropped)} without expert" if layer.dropped else ""
    facts = (
        f"{len(tokens)} tokens over {layer.num_experts} experts{lost}. Router entropy "
        f"{layer.router_entropy:.2f} of at most {math.log(layer.num_experts):.2f} nats; effective "
        f"experts {layer.effective_experts:.1f}."
    )
    return (
        f'<section id="{layer.stack}-{layer.layer}"><h3>{layer.stack}, layer {layer.layer}</h3>\n'
        f'<p class="soft">{facts}</p>\n<div class="text">{"".join(spans)}</div>\n'
        f"{_loads(layer)}</section>\n"
    )


def _loads(layer: LayerRoutes) -> str:
    most = max(*layer.load, 1)
    bars = "".join(
        f'<div class="load"><span class="t {_classes(expert)}">{expert}</span>'
        f'<span class="{_classes(expert)}"><b style="width:{100 * load / most:.1f}%"></b></span>'
        f"<span>{load}</span></div>\n"
        for expert, load in enumerate(layer.load)
        if load
    )
    idle = [str(expert) for expert, load in enumerate(layer.load) if not load]
    note = f'<p class="soft idle">idle: {", ".join(idle)}</p>\n' if idle else ""
    return f'<div class="loads" title="tokens per expert">\n{bars}</div>\n{note}'


def _matrix(layers: Sequence[LayerRoutes], tokens: Sequence[Token]) -> str:
    """A row per token, a column per layer."""
    heads = "".join(f'<th class="number">layer {layer.layer}</th>' for layer in layers)
    rows = []
    for position, token in enumerate(tokens[:_MATRIX_ROWS]):
        cells = "".join(_matrix_cell(layer, position) for layer in layers)
        rows.append(
            f'<tr><td class="number">{position}</td><td>{_shown(token.piece)}</td>{cells}</tr>\n'
        )
    cut = len(tokens) - len(rows)
    note = f'<p class="soft">{cut} more tokens are not in this table.</p>\n' if cut else ""
    return (
        "<details><summary>every token and layer</summary>\n"
        f'<div class="scroll"><table><thead><tr><th class="number">#</th><th>token</th>{heads}</tr>'
        f"</thead>\n<tbody>\n{''.join(rows)}</tbody></table></div>\n{note}</details>\n"
    )


def _matrix_cell(layer: LayerRoutes, position: int) -> str:
    experts = " ".join(map(str, layer.experts[position])) or "–"
    return f'<td class="t {_classes(layer.first[position])}">{experts}</td>'


def _agreement(layers: Sequence[LayerComparison]) -> str:
    rows = []
    for layer in layers:
        rank = layer.rank_correlation
        values = (
            f"{len(layer.ours.experts)}",
            f"{layer.same_first:.1%}",
            f"{layer.same_set:.1%}",
            "undefined" if rank is None else f"{rank:.3f}",
            f"{layer.load_divergence:.4f}",
        )
        cells = "".join(f'<td class="number">{value}</td>' for value in values)
        rows.append(f"<tr><th>{layer.ours.stack} {layer.ours.layer}</th>{cells}</tr>\n")
    names = (
        "tokens",
        "same first expert",
        "same experts",
        "load rank correlation",
        "load JS, nats",
    )
    heads = "".join(f'<th class="number">{name}</th>' for name in names)
    return (
        f'<div class="scroll"><table><thead><tr><th>layer</th>{heads}</tr></thead>\n<tbody>\n'
        f"{''.join(rows)}</tbody></table></div>\n"
        '<p class="soft">Rank correlation is Spearman\'s, undefined where all loads are equal; JS '
        "is the Jensen-Shannon divergence of the load shares, 0 to ln 2.</p>\n"
    )


def _changes_section(layer: LayerComparison, tokens: Sequence[Token]) -> str:
    changed = set(layer.other_first)
    spans = []
    for position, token in enumerate(tokens):
        tip = f"A\n{_tip(layer.ours, position)}\nB\n{_tip(layer.theirs, position)}"
        if position not in changed:
            spans.append(_token(token, position, None, "", tip, plain=True))
            continue
        a, b = layer.ours.first[position], layer.theirs.first[position]
        numbers = "→".join("–" if expert is None else str(expert) for expert in (a, b))
        spans.append(_token(token, position, b, numbers, tip))
    where = f"{layer.ours.stack}-{layer.ours.layer}"
    return (
        f'<section id="{where}"><h3>{layer.ours.stack}, layer {layer.ours.layer}</h3>\n'
        f'<p class="soft">other first expert at {len(changed)} of {len(tokens)} tokens, other set '
        f'at {len(layer.other_set)}</p>\n<div class="text">{"".join(spans)}</div></section>\n'
    )


def _token(
    token: Token, position: int, expert: int | None, numbers: str, tip: str, *, plain: bool = False
) -> str:
    classes = "same" if plain else _classes(expert)
    head = f"token {position}: {token.piece!r}, id {token.id}"
    number = f"<sub>{numbers}</sub>" if numbers else ""
    # The word, and not the space before it, so that a line may break there.
    space, word = split_space(token.piece)
    end = "<br>" if word.endswith("\n") else ""
    return (
        f'{space}<span class="t {classes}" tabindex="0" data-tip="{_shown(head)}&#10;'
        f'{"&#10;".join(map(_shown, tip.splitlines()))}">{_shown(word)}{number}</span>{end}'
    )


def _tip(layer: LayerRoutes, position: int) -> str:
    pairs = zip(layer.experts[position], layer.weights[position], strict=True)
    return "\n".join(f"expert {expert}: {weight:.3f}" for expert, weight in pairs) or "no expert"


def _classes(expert: int | None) -> str:
    if expert is None:
        return "none"
    return f"h{palette.hue_index(expert)} s{palette.style_index(expert)}"


def _shown(text: str, line_ends: str = _LINE_END) -> str:
    """Escaped text; line ends as a sign, or as they are if there is none."""
    if not line_ends:
        return "\n".join(escape(visible(line)) for line in text.split("\n"))
    return escape(visible(text))
