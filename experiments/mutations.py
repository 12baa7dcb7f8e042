"""Small changes of Python code, each of which should change what the code does.

`mutations(source)` lists every place of a module where one of these operators applies:

    compare    < to <=, > to >=, == to !=, `in` to `not in`, `is` to `is not`, and the reverse
    negate     `not x` to x; the condition of `if` and of a conditional expression to its opposite
    boolean    `and` to `or`, and the reverse
    arithmetic + to −, * to /, and the reverse; // to *, % to //, ** to *; −x to x
    constant   an integer n to n + 1 and n − 1; a float to its double, 0.0 to 1.0; True to False, and the reverse
    twin       a function to its counterpart: min to max, any to all, ones to zeros, floor to ceil, …
    swap       f(a, b) to f(b, a), if a and b are plain names and f is not symmetric
    keyword    f(a, key=b) to f(a)
    drop       removes a call whose result is unused, `x += y`, an assignment to an attribute or element, `continue`, `break`
    return     `return x` to `return None`, if x is a plain name

Code that affects no behaviour, or only messages, is not changed: docstrings, type hints, assertions, raised messages, logging,
`__repr__`, decorators, cache sizes, imports, and everything below `if TYPE_CHECKING` and `if __name__ == "__main__"`.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
}  # fmt: skip
_TWIN_PAIRS = (
    ("min", "max"), ("minimum", "maximum"), ("any", "all"), ("argmin", "argmax"), ("ones", "zeros"),
    ("ones_like", "zeros_like"), ("floor", "ceil"), ("startswith", "endswith"), ("lstrip", "rstrip"), ("exp", "expm1"),
    ("log", "log1p"), ("append", "extend"), ("cumsum", "cumprod"), ("removeprefix", "removesuffix"),
)  # fmt: skip
_TWINS = dict(_TWIN_PAIRS) | {second: first for first, second in _TWIN_PAIRS}

# Functions that are symmetric in two arguments, or that raise immediately if these are swapped.
_SYMMETRIC = {
    "min", "max", "minimum", "maximum", "logical_and", "logical_or", "logaddexp", "gcd", "isclose", "allclose", "add", "multiply",
    "isinstance", "issubclass", "getattr", "setattr", "hasattr", "partial", "cast", "promote_types", "spearmanr",
}  # fmt: skip
# Calls that only report or check; they compute nothing.
_TELLING = {
    "print",
    "warn",
    "add_note",
    "debug",
    "info",
    "warning",
    "error",
    "exception",
    "log_first",
    "setLevel",
    "close",
    "flush",
    "field",
}
# Keyword arguments that affect speed, layout or messages, but not results.
_QUIET = {
    "maxsize", "encoding", "stacklevel", "flush", "daemon", "name", "help", "static_argnames", "donate_argnames", "show_progress",
    "indent", "frozen", "slots", "eq", "strict", "repr", "compare", "what", "where_from", "max_workers", "errors", "newline",
}  # fmt: skip
_SILENT_FUNCTIONS = {"__repr__", "__str__"}
_HINTS = (ast.arg, ast.AnnAssign)


@dataclass(frozen=True)
class Mutation:
    """One change: bytes start … end of the file become `text`. `line` counts from 1; `before` is the old text on one line."""

    operator: str
    line: int
    start: int
    end: int
    before: str
    text: str

    def apply(self, source: str) -> str:
        """Returns the source with the change."""
        data = source.encode()
        return (data[: self.start] + self.text.encode() + data[self.end :]).decode()

    def __str__(self) -> str:
        return f"{self.before} → {' '.join(self.text.split())}"


def mutations(source: str) -> list[Mutation]:
    """Returns all changes of a module, in the order of its text."""
    data, starts = source.encode(), [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    made = []
    for operator, node, text in _changes(ast.parse(source)):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        before = " ".join(data[start:end].decode().split())
        made.append(Mutation(operator, node.lineno, start, end, before, text))
    return sorted(made, key=lambda mutation: (mutation.start, mutation.end, mutation.text))


def _changes(tree: ast.Module) -> Iterator[tuple[str, ast.AST, str]]:
    """Yields (operator, node, new text of the node) for every change."""
    for node in _reached(tree):
        if isinstance(node, ast.Compare):
            yield from _compared(node)
        elif isinstance(node, ast.BoolOp):
            other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield "boolean", node, _text(node, op=other)
        elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC and not _is_text(node.left) and not _is_text(node.right):
            yield "arithmetic", node, _text(node, op=_ARITHMETIC[type(node.op)]())
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
            yield ("negate" if isinstance(node.op, ast.Not) else "arithmetic"), node, f"({ast.unparse(node.operand)})"
        elif isinstance(node, ast.Constant):
            for value in _other_constants(node.value):
                yield "constant", node, f"({value!r})"
        elif isinstance(node, ast.Call):
            yield from _called(node)
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.Name):
            yield "return", node, "return None"
        elif _droppable(node):
            yield "drop", node, "pass"
        if isinstance(node, (ast.If, ast.IfExp)) and not isinstance(node.test, (ast.Compare, ast.UnaryOp)):
            yield "negate", node.test, f"(not ({ast.unparse(node.test)}))"


def _reached(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the nodes whose change may affect behaviour."""
    for name, value in ast.iter_fields(node):
        if name in ("decorator_list", "annotation", "returns", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or _silent(child):
                continue
            yield child
            yield from _reached(child)


def _silent(node: ast.AST) -> bool:
    if isinstance(node, (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom, ast.JoinedStr)):
        return True
    if isinstance(node, ast.FunctionDef):
        return node.name in _SILENT_FUNCTIONS
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or (isinstance(node.value, ast.Call) and _tells(node.value))
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) in ("__all__", "__slots__")
    return (isinstance(node, ast.keyword) and node.arg in _QUIET) or (isinstance(node, ast.Call) and _name(node) == "field")


def _tells(call: ast.Call) -> bool:
    text = ast.unparse(call.func)
    return _name(call) in _TELLING or text.startswith(("chex.", "warnings.", "logging.", "logger.", "_log."))


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _compared(node: ast.Compare) -> Iterator[tuple[str, ast.AST, str]]:
    for index, op in enumerate(node.ops):
        ops = [*node.ops]
        ops[index] = _COMPARE[type(op)]()
        yield "compare", node, _text(node, ops=ops)


def _called(node: ast.Call) -> Iterator[tuple[str, ast.AST, str]]:
    name = _name(node)
    if name in _TWINS:
        function = copy.deepcopy(node.func)
        setattr(function, "attr" if isinstance(function, ast.Attribute) else "id", _TWINS[name])
        yield "twin", node, _text(node, func=function)
    args = node.args
    if len(args) >= 2 and name not in _SYMMETRIC and all(isinstance(a, (ast.Name, ast.Attribute)) for a in args[:2]):
        if ast.unparse(args[0]) != ast.unparse(args[1]):
            yield "swap", node, _text(node, args=[args[1], args[0], *args[2:]])
    for index, keyword in enumerate(node.keywords):
        if keyword.arg is not None and keyword.arg not in _QUIET and len(node.args) + len(node.keywords) > 1:
            yield "keyword", node, _text(node, keywords=node.keywords[:index] + node.keywords[index + 1 :])


def _droppable(node: ast.AST) -> bool:
    if isinstance(node, (ast.AugAssign, ast.Continue, ast.Break)):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call) and not _tells(node.value)
    return isinstance(node, ast.Assign) and all(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets)


def _other_constants(value: object) -> tuple:
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (value + 1, value - 1)
    if isinstance(value, float):
        return (2 * value if value else 1.0,)
    return ()


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)))


def _text(node: ast.expr, **fields) -> str:
    """Returns the node's source with some fields replaced, in parentheses to keep its precedence."""
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return f"({ast.unparse(changed)})"
