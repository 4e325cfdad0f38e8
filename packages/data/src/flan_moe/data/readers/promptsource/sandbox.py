"""Jinja for untrusted templates: few functions, no attributes of Python, bounded work.

Jinja's own sandbox keeps templates from Python's internals, but lets them loop and grow without
end. Here a template is parsed first and refused if it holds anything that prompts do not need;
loops and everything that makes text longer are then counted (`Work`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from random import Random
from typing import Any

from jinja2 import TemplateError, meta, nodes
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from flan_moe.data.readers.promptsource.filters import highlight, most_frequent
from flan_moe.data.readers.promptsource.work import TemplateTooCostlyError, Work

LONGEST_TEMPLATE = 20_000
LARGEST_NUMBER = 1 << 64

# Filters whose result is about as long as what they are given.
PLAIN_FILTERS = (
    "abs",
    "capitalize",
    "count",
    "d",
    "default",
    "first",
    "float",
    "int",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reverse",
    "round",
    "sort",
    "sum",
    "title",
    "trim",
    "unique",
    "upper",
)
METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(
        (
            "capitalize",
            "count",
            "endswith",
            "find",
            "index",
            "isdigit",
            "join",
            "lower",
            "lstrip",
            "partition",
            "replace",
            "rfind",
            "rpartition",
            "rsplit",
            "rstrip",
            "split",
            "splitlines",
            "startswith",
            "strip",
            "title",
            "upper",
        )
    ),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
    dict: frozenset(("get", "items", "keys", "values")),
}
ALLOWED = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.If,
    nodes.For,
    nodes.Assign,
    nodes.Name,
    nodes.Literal,
    nodes.Pair,
    nodes.Keyword,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Slice,
    nodes.Call,
    nodes.Filter,
    nodes.Test,
    nodes.Compare,
    nodes.Operand,
    nodes.CondExpr,
    nodes.Concat,
    nodes.BinExpr,
    nodes.UnaryExpr,
)


class TemplateRefusedError(ValueError):
    """A template that cannot be run here; the message says why."""


class CompiledTemplate:
    """A template that is safe to run.

    Args:
        source: Jinja.

    Raises:
        TemplateRefusedError: It is no Jinja, or holds what prompts do not need.
    """

    def __init__(self, source: str) -> None:
        if len(source) > LONGEST_TEMPLATE:
            raise TemplateRefusedError(
                f"{len(source)} characters; expected {LONGEST_TEMPLATE} at most"
            )
        self._environment = _Environment()
        try:
            tree = self._environment.parse(source)
            self.columns = frozenset(meta.find_undeclared_variables(tree)) - {"range", "zip"}
            _check(tree, self._environment)
            code = self._environment.compile(_Counted().visit(tree))
        except (TemplateError, SyntaxError, RecursionError, MemoryError) as error:
            raise TemplateRefusedError(f"{type(error).__name__}: {error}") from error
        self._template = self._environment.template_class.from_code(
            self._environment, code, self._environment.globals
        )

    def render(self, values: Mapping[str, Any], rng: Random) -> str:
        """The text for a row.

        Args:
            values: Column, then value: JSON types only.
            rng: Of the ``choice`` filter.

        Raises:
            TemplateTooCostlyError: It works too much for one prompt.
            Exception: Whatever the template's own expressions raise for the row.
        """
        self._environment.work, self._environment.rng = Work(), rng
        return "".join(self._template.generate(values))


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        # Not optimized: nothing of the template runs before `render`.
        super().__init__(optimized=False, finalize=lambda value: self.work.measured(value))
        self.work, self.rng = Work(), Random(0)
        own: dict[str, Callable[..., Any]] = {
            "choice": lambda values: self.rng.choice(values),
            "most_frequent": most_frequent,
            "highlight": highlight,
        }
        # Counted before: what these make can be longer than all they are given.
        self.filters = {name: self._counted(function) for name, function in own.items()}
        self.filters |= {name: self._counted(FILTERS[name]) for name in PLAIN_FILTERS}
        self.filters |= {
            "join": self._join,
            "replace": self._replace,
            "string": lambda value: str(self.work.measured(value)),
            _SIZED: lambda value: self.work.measured(value),
            _STEPS: lambda values: self.work.steps(values),
        }
        self.globals = {"range": self._range, "zip": self._zip}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "+" and not numbers:
            self.work.measured(left)
            self.work.measured(right)
        elif not numbers or (operator == "**" and abs(right) > 64):
            raise TemplateTooCostlyError(
                f"{type(left).__name__} {operator} {type(right).__name__} is not for prompts"
            )
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and abs(result) > LARGEST_NUMBER:
            raise TemplateTooCostlyError(
                f"{operator}: a number above {LARGEST_NUMBER} is not for prompts"
            )
        return result

    def is_safe_callable(self, obj: Any) -> bool:
        owner = getattr(obj, "__self__", None)
        if owner is self:
            return obj in self.globals.values()
        return getattr(obj, "__name__", "") in METHODS.get(type(owner), ())

    def call(self, context: Any, obj: Any, *arguments: Any, **keywords: Any) -> Any:
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name == "replace":
            return self._replace(owner, *arguments)
        if isinstance(owner, str) and name == "join":
            return self._join(*arguments, owner)
        return self.work.measured(super().call(context, obj, *arguments, **keywords))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)  # keeps the marks by which Jinja passes its context
        def counted(*arguments: Any, **keywords: Any) -> Any:
            for argument in arguments:
                if isinstance(argument, str | list | tuple | dict):
                    self.work.spend(len(argument))
            return function(*arguments, **keywords)

        return counted

    def _join(self, values: Iterable[Any], d: str = "") -> str:
        texts = [str(self.work.measured(value)) for value in self.work.steps(values)]
        self.work.spend(len(d) * len(texts))
        return d.join(texts)

    def _replace(self, text: Any, old: str, new: str, count: int = -1) -> str:
        text = str(self.work.measured(text))
        found = text.count(old)
        self.work.spend(len(text) + found * len(new))
        return text.replace(old, new, -1 if count is None else count)

    def _range(self, *numbers: int) -> list[int]:
        return self.work.steps(range(*numbers))

    def _zip(self, *columns: Iterable[Any]) -> list[Any]:
        return self.work.steps(zip(*columns, strict=False))


_SIZED, _STEPS = "sized by the sandbox", "steps of the sandbox"


def _check(tree: nodes.Template, environment: _Environment) -> None:
    for node in tree.find_all(nodes.Node):
        kind = type(node).__name__
        if not isinstance(node, ALLOWED) and kind not in ("And", "Or", "Not"):
            raise TemplateRefusedError(f"line {node.lineno}: {kind} is not for prompts")
        if isinstance(node, nodes.For) and node.recursive:
            raise TemplateRefusedError(f"line {node.lineno}: a recursive loop is not for prompts")
        if isinstance(node, nodes.Filter) and node.name not in environment.filters:
            raise TemplateRefusedError(f"line {node.lineno}: no filter {node.name!r}")


class _Counted(NodeTransformer):
    """Puts counting filters around loops and around whatever builds text or lists."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filter(_STEPS, node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter("join", nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filter(_SIZED, node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filter(_SIZED, node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filter(_SIZED, node) if node.ctx == "load" else node


def _filter(name: str, node: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
