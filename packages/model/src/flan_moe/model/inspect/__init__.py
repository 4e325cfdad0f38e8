"""Which expert each token took: run a text through a model, look at its routes, compare two."""

from flan_moe.model.inspect.compare import Comparison, LayerComparison, compare_routes
from flan_moe.model.inspect.page import comparison_page, routes_page
from flan_moe.model.inspect.routes import LayerRoutes, Routes, Token
from flan_moe.model.inspect.terminal import TerminalStyle, comparison_lines, routes_lines
from flan_moe.model.inspect.trace import trace_routes

__all__ = [
    "Comparison",
    "LayerComparison",
    "LayerRoutes",
    "Routes",
    "TerminalStyle",
    "Token",
    "compare_routes",
    "comparison_lines",
    "comparison_page",
    "routes_lines",
    "routes_page",
    "trace_routes",
]
