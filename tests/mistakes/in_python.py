"""Mistakes in Python: located in the syntax tree, applied to the text, so that each is one change of a diff.

Docstrings, messages (arguments of raised errors, f-strings), annotations, decorators, `if TYPE_CHECKING` and
durations (floating-point literals) are not changed.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Sequence

from tests.mistakes.change import Change

_COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Eq: (r"==", "!="), ast.NotEq: (r"!=", "=="), ast.Lt: (r"<", "<="), ast.LtE: (r"<=", "<"), ast.Gt: (r">", ">="),
    ast.GtE: (r">=", ">"), ast.Is: (r"\bis\b", "is not"), ast.IsNot: (r"\bis\s+not\b", "is"),
    ast.In: (r"\bin\b", "not in"), ast.NotIn: (r"\bnot\s+in\b", "in"),
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: (r"\+", "-"), ast.Sub: (r"-", "+"), ast.Mult: (r"\*", "//"), ast.FloorDiv: (r"//", "*"),
    ast.Div: (r"/", "*"), ast.Mod: (r"%", "//"), ast.Pow: (r"\*\*", "*"), ast.BitAnd: (r"&", "|"), ast.BitOr: (r"\|", "&"),
}  # fmt: skip
#: Methods whose call is removed.
_DROPPED = {"sort", "filter", "unique", "drop_nulls", "fill_null", "reverse", "strip", "lower", "casefold", "resolve"}
#: Names of functions and methods that are confused with each other.
_EXCHANGED = {
    "any": "all", "all": "any", "min": "max", "max": "min", "any_horizontal": "all_horizontal", "head": "tail",
    "all_horizontal": "any_horizontal", "first": "last", "last": "first", "is_null": "is_not_null", "tail": "head",
    "is_not_null": "is_null", "ne_missing": "ne", "eq_missing": "eq", "min_horizontal": "max_horizontal",
    "max_horizontal": "min_horizontal", "starts_with": "ends_with", "startswith": "endswith",
}  # fmt: skip
_OF_KEYWORDS = {
    "how": {"left": "inner", "inner": "left", "anti": "semi", "semi": "anti", "full": "left", "cross": "inner"},
    "keep": {"last": "first", "first": "last", "any": "none", "none": "any"},
    "maintain_order": {"left": "none", "right": "none", "left_right": "none"},
}
#: Functions whose arguments are in any order, or cannot be confused with each other.
_ANY_ORDER = {"min", "max", "isinstance", "hasattr", "getattr", "setattr", "cast", "suppress"}
_COLUMNS = {"on", "by", "subset"}


def changes(source: str) -> list[Change]:
    """All single mistakes that can be made in a module."""
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    return finder.found


def _is_simple(node: ast.expr) -> bool:
    return isinstance(node, ast.Name | ast.Attribute | ast.Subscript)


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


def _is_types(node: ast.expr) -> bool:
    """Whether it reads like a union of types."""
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.BitOr) and _is_types(node.left) and _is_types(node.right)
    name = _name(node)
    return name[:1].isupper() or name in {"int", "str", "float", "bytes", "bool", "list", "dict", "tuple", "set"}


class _Finder(ast.NodeVisitor):
    def __init__(self, source: str) -> None:
        self._data = source.encode()
        self._lines = [0]
        for line in self._data.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))
        self._names: list[str] = []
        self.found: list[Change] = []

    def _start(self, node: ast.expr | ast.stmt) -> int:
        return self._lines[node.lineno - 1] + node.col_offset

    def _end(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._lines[node.end_lineno - 1] + node.end_col_offset

    def _text(self, start: int, end: int) -> str:
        return self._data[start:end].decode()

    def _of(self, node: ast.expr | ast.stmt) -> str:
        return self._text(self._start(node), self._end(node))

    def _add(self, kind: str, start: int, end: int, new: str) -> None:
        self.found.append(Change(kind, ".".join(self._names) or "module", start, end, new))

    def _replace(self, kind: str, node: ast.expr | ast.stmt, new: str) -> None:
        self._add(kind, self._start(node), self._end(node), new)

    def _token(self, pattern: str, start: int, end: int) -> tuple[int, int]:
        """The location of an operator between two operands, excluding comments."""
        gap = re.sub(rb"#[^\n]*", lambda comment: b" " * len(comment[0]), self._data[start:end])
        found = re.search(pattern.encode(), gap)
        assert found is not None, (pattern, gap)
        return start + found.start(), start + found.end()

    # Excluded nodes, and names of places.

    def _named(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        self._names.append(node.name)
        if isinstance(node, ast.FunctionDef):
            for default in (*node.args.defaults, *node.args.kw_defaults):
                if default is not None:
                    self.visit(default)
        for statement in node.body:
            self.visit(statement)
        self._names.pop()

    visit_FunctionDef = _named  # noqa: N815
    visit_ClassDef = _named  # noqa: N815

    def visit_Raise(self, node: ast.Raise) -> None:
        """The arguments of a raised error are a message."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Usually a message."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._statement(node, [node.target])
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._statement(node, node.targets)
        # An alias of a type is an annotation.
        if self._names or not (_is_types(node.value) or isinstance(node.value, ast.Subscript)):
            self.visit(node.value)

    # Statements.

    def _statement(self, node: ast.stmt, targets: Sequence[ast.expr]) -> None:
        """An assignment to anything but a local variable, except in a constructor."""
        if all(isinstance(target, ast.Attribute | ast.Subscript) for target in targets) and not (
            self._names and self._names[-1] in {"__init__", "__post_init__"}
        ):
            self._replace("statement", node, "pass")

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if not _is_text(node.value):
            self._replace("statement", node, "pass")
        old, new = _OPERATORS.get(type(node.op), ("", ""))
        if old and not _is_text(node.value) and old not in {r"\|", "&"}:
            start, _ = self._token(old + "=", self._end(node.target), self._start(node.value))
            self._add("arithmetic", start, start + len(old.replace("\\", "")), new)
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        self._replace("statement", node, "pass")

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and _name(node.value.func) != "sleep":
            self._replace("call", node, "pass")
        elif isinstance(node.value, ast.Yield | ast.YieldFrom):
            self._replace("statement", node, "pass")
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.dump(node.test):
            return
        if len(node.body) == 1 and isinstance(node.body[0], ast.Return | ast.Continue | ast.Break | ast.Raise):
            self._replace("guard", node.body[0], "pass")
        self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if isinstance(node.type, ast.Tuple):
            self._without_each("except", node.type.elts)
        for statement in node.body:
            self.visit(statement)

    # Expressions.

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, op, right in zip(operands, node.ops, operands[1:], strict=False):
            old, new = _COMPARISONS[type(op)]
            start, end = self._token(old, self._end(left), self._start(right))
            self._add("comparison", start, end, new)
            for side in (left, right):
                if isinstance(side, ast.Constant) and isinstance(side.value, str):
                    self._replace("constant", side, repr(side.value + "_").replace("'", '"'))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        word, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        pairs = itertools.pairwise(node.values)
        tokens = [self._token(rf"\b{word}\b", self._end(left), self._start(right)) for left, right in pairs]
        for start, end in tokens:
            self._add("boolean", start, end, other)
        self._operands(node, tokens)
        self.generic_visit(node)

    def _operands(self, node: ast.expr, tokens: list[tuple[int, int]]) -> None:
        """Remove each operand of a chain."""
        first = re.match(rb"\s*", self._data[tokens[0][1] : self._end(node)])
        assert first is not None
        self._add("operand", self._start(node), tokens[0][1] + first.end(), "")
        for (start, _), until in zip(tokens, [*(start for start, _ in tokens[1:]), self._end(node)], strict=True):
            self._add("operand", len(self._data[:start].rstrip()), len(self._data[:until].rstrip()), "")

    def visit_BinOp(self, node: ast.BinOp) -> None:
        old, new = _OPERATORS.get(type(node.op), ("", ""))
        types = _is_types(node)
        if old and not _is_text(node.left) and not _is_text(node.right):
            start, end = self._token(old, self._end(node.left), self._start(node.right))
            if isinstance(node.op, ast.BitAnd | ast.BitOr):
                if not types:
                    self._add("boolean", start, end, new)
                self._operands(node, [(start, end)])
            else:
                self._add("arithmetic", start, end, new)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.Invert):
            self._add("not", self._start(node), self._start(node.operand), "")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._replace("constant", node, str(not node.value))
        elif isinstance(node.value, int):
            self._replace("constant", node, f"({node.value} + 1)" if node.value > 9 else str(node.value + 1))
            self._replace("constant", node, f"({node.value} - 1)" if node.value > 9 else str(node.value - 1))

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._replace("choice", node, f"({self._of(node.body)})")
        self._replace("choice", node, f"({self._of(node.orelse)})")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        name = _name(function)
        if isinstance(function, ast.Attribute):
            end = self._end(function)
            dot = self._data.rindex(b".", self._end(function.value), end)
            if name in _DROPPED:
                self._add("dropped call", len(self._data[:dot].rstrip()), self._end(node), "")
            if name in _EXCHANGED and self._of(function) != "pl.all":
                self._add("exchanged", end - len(name), end, _EXCHANGED[name])
        elif name in _EXCHANGED:
            self._replace("exchanged", function, _EXCHANGED[name])
        elif name == "sorted" and node.args:
            self._replace("dropped call", node, f"list({self._of(node.args[0])})")
        if name not in _ANY_ORDER:
            self._arguments(node.args)
            self._arguments([keyword.value for keyword in node.keywords])
            for argument in node.args:
                self._key(argument)
        for keyword in node.keywords:
            self._keyword(keyword, name)
        self.generic_visit(function)
        for argument in node.args:
            self.visit(argument)

    def _arguments(self, values: Sequence[ast.expr]) -> None:
        """Swap neighboring arguments."""
        for one, other in itertools.pairwise(values):
            texts = self._of(one), self._of(other)
            if _is_simple(one) and _is_simple(other) and texts[0] != texts[1]:
                between = self._text(self._end(one), self._start(other))
                self._add("swapped", self._start(one), self._end(other), texts[1] + between + texts[0])

    def _key(self, node: ast.expr) -> None:
        """Remove a column of a key."""
        value = node.value if isinstance(node, ast.Starred) else node
        if _name(value).endswith("KEY"):
            self._replace("columns", value, f"{self._of(value)}[1:]")
            self._replace("columns", value, f"{self._of(value)}[:1]")

    def _keyword(self, keyword: ast.keyword, function: str) -> None:
        value = keyword.value
        if function == "zip" and keyword.arg == "strict":
            return
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            if new := _OF_KEYWORDS.get(keyword.arg or "", {}).get(value.value):
                self._replace("keyword", value, f'"{new}"')
        elif keyword.arg in _COLUMNS:
            if isinstance(value, ast.List | ast.Tuple):
                self._without_each("columns", value.elts)
            self._key(value)
        self.visit(value)

    def _without_each(self, kind: str, elements: Sequence[ast.expr]) -> None:
        """Remove each element of a list that has several."""
        for index in range(len(elements) if len(elements) > 1 else 0):
            if index:
                self._add(kind, self._end(elements[index - 1]), self._end(elements[index]), "")
            elif len(elements) > 2:
                self._add(kind, self._start(elements[0]), self._start(elements[1]), "")
