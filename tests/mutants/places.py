"""Every place of a source where a small mistake fits. A mutation replaces the text of one node of
the syntax tree, so all else of the file stays as it is."""

import ast
import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

KINDS = "operators", "comparisons", "constants", "arguments", "statements", "slices", "axes"
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
             ast.FloorDiv: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
             ast.And: ast.Or, ast.Or: ast.And}
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
               ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In,
               ast.Is: ast.IsNot, ast.IsNot: ast.Is}
EXTREMES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum"}
AXIS_LAST = ("all any argmax argmin argsort cat chunk concatenate cumsum expand_dims flatten flip "
             "gather max mean min prod softmax sort split squeeze stack std sum swapaxes topk "
             "transpose unbind unsqueeze").split()      # their last argument may be an axis
TELLING = re.compile(r"print|complain|tqdm\.write|bar\.\w+|\w+\.error")


@dataclass(frozen=True)
class Mutation:
    kind: str
    line: int
    source: str                              # of the whole file, with the mistake
    reach: range                             # the lines of the statement, or of its head
    imported: bool                           # the statement runs when its file is imported


def changed(node: ast.AST, **fields) -> str:
    """The text of a node with other fields."""
    node = copy.copy(node)
    vars(node).update(fields)
    return ast.unparse(node)


def literal(node: ast.AST | None) -> object:
    """The value of a literal such as True or -1, else None."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None


def called(node: ast.AST) -> str:
    """What a call calls."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


class Places:
    """All mutations of a source, in `found`."""

    def __init__(self, source: str):
        self.raw, tree = source.encode(), ast.parse(source)
        self.starts = [0, 0, *accumulate(map(len, self.raw.splitlines(keepends=True)))]
        sides = [side for node in ast.walk(tree) if isinstance(node, ast.Compare)
                 for side in (node.left, *node.comparators)]
        words = [word for side in sides for word in getattr(side, "elts", [side])]
        self.words = {id(word): literal(word) for word in words if type(literal(word)) is str}
        self.spared: set[int] = set()        # nodes of another kind's mutation; last returns
        self.found: list[Mutation] = []
        self.visit(tree, range(0), True)

    def span(self, node: ast.AST) -> tuple[int, int]:
        return (self.starts[node.lineno] + node.col_offset,
                self.starts[node.end_lineno] + node.end_col_offset)

    def visit(self, node: ast.AST, reach: range, imported: bool) -> None:
        if (isinstance(node, (ast.Raise, ast.JoinedStr)) or TELLING.fullmatch(called(node))
                or isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)):
            return
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno
            reach = range(node.lineno, last + 1)
        for kind, new, *where in self.places(node):
            first, last = where[0] if where else node, where[-1] if where else node
            start, end = self.span(first)[0], self.span(last)[1]
            mutated = (self.raw[:start] + new.encode() + self.raw[end:]).decode()
            self.found.append(Mutation(kind, first.lineno, mutated, reach, imported))
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list"):
                continue
            if called(node) == "tqdm":       # only what a bar counts
                value = node.args[:1] if field == "args" else None
            inside = isinstance(node, (ast.FunctionDef, ast.Lambda)) and field == "body"
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self.visit(child, reach, imported and not inside)

    def places(self, node: ast.AST) -> Iterator[tuple]:
        """(kind, new text) of each mistake at this node; then, where the new text does not replace
        this node, the first and the last node that it replaces."""
        match node:
            case ast.BinOp(left=a, right=b, op=op) | ast.AugAssign(target=a, value=b, op=op):
                text = any(isinstance(s, (ast.JoinedStr, ast.Dict)) or type(literal(s)) is str
                           for s in (a, b))
                if type(op) in OPERATORS and not text:
                    new = changed(node, op=OPERATORS[type(op)]())
                    bits = isinstance(node, ast.BinOp) and isinstance(op, (ast.BitAnd, ast.BitOr))
                    yield "operators", f"({new})" if bits else new
                if isinstance(node, ast.AugAssign):
                    yield "statements", "pass"
            case ast.BoolOp(op=op):
                yield "operators", f"({changed(node, op=OPERATORS[type(op)]())})"
            case ast.UnaryOp(operand=operand) if literal(node) is None:
                atom = isinstance(operand, (ast.Name, ast.Attribute, ast.Call, ast.Subscript))
                yield "operators", ast.unparse(operand) if atom else f"({ast.unparse(operand)})"
            case ast.Compare(ops=ops):
                for i, op in enumerate(ops):
                    new = [*ops[:i], COMPARISONS[type(op)](), *ops[i + 1:]]
                    yield "comparisons", changed(node, ops=new)
            case ast.Name(id=name) if name in EXTREMES:
                yield "comparisons", EXTREMES[name]
            case ast.Attribute(attr=name) if name in EXTREMES:
                yield "comparisons", changed(node, attr=EXTREMES[name])
            case ast.Call():
                yield from self.call(node)
            case ast.Constant(value=str(word)) if id(node) in self.words:
                words = sorted(set(self.words.values()))
                if len(words) > 1:
                    yield "constants", repr(words[(words.index(word) + 1) % len(words)])
            case ast.Constant(value=bool(value)) if id(node) not in self.spared:
                yield "constants", str(not value)
            case ast.Constant(value=int(value) | float(value)) if id(node) not in self.spared:
                yield "constants", repr(type(value)({0: 1, 1: 0}.get(value, value + 1)))
            case ast.Slice():
                for name in ("lower", "upper"):
                    if bound := getattr(node, name):
                        yield "slices", changed(node, **{name: None})
                        if literal(bound) is None:           # else: a constant
                            yield "slices", f"({ast.unparse(bound)}) + 1", bound
                if literal(node.step) == -1:
                    yield "slices", changed(node, step=None)
                    self.spared |= set(map(id, ast.walk(node.step)))
            case ast.If(test=test) | ast.IfExp(test=test):
                yield "statements", "True", test
                yield "statements", "False", test
            case ast.FunctionDef(body=[*_, ast.Return() as last]):
                self.spared.add(id(last))
            case ast.Continue() | ast.Assign(targets=[ast.Attribute()]):
                yield "statements", "pass"
            case ast.Return() if id(node) not in self.spared:
                yield "statements", "pass"
            case ast.Expr(value=value) if not isinstance(value, ast.Constant):
                if not TELLING.fullmatch(called(value)):
                    yield "statements", "pass"

    def call(self, node: ast.Call) -> Iterator[tuple]:
        if called(node) == "tqdm":
            return
        for a, b in zip(node.args, node.args[1:]):
            (start, end), (then, stop) = self.span(a), self.span(b)
            new = self.raw[then:stop] + self.raw[end:then] + self.raw[start:end]
            if self.raw[start:end] != self.raw[then:stop] and called(node) not in ("min", "max"):
                yield "arguments", new.decode(), a, b
        for keyword in node.keywords:
            if keyword.arg not in (None, "help", "desc", "description", "prog"):
                rest = [k for k in node.keywords if k is not keyword]
                yield "arguments", changed(node, keywords=rest)
                if type(value := literal(keyword.value)) is bool:
                    yield "arguments", str(not value), keyword.value
                    self.spared.add(id(keyword.value))
        axes = [k.value for k in node.keywords if k.arg in ("dim", "axis")]
        name = called(node).split(".")[-1]
        for axis in axes + (node.args[-1:] if name in AXIS_LAST else []):
            if type(value := literal(axis)) is int:
                other = {0: 1, -1: -2}.get(value, value - 1 if value > 0 else value + 1)
                yield "axes", str(other), axis
                self.spared |= set(map(id, ast.walk(axis)))


def mutations(source: str) -> list[Mutation]:
    """Docstrings, annotations, decorators, f-strings, what is raised or printed, progress bars and
    `if __name__` are left alone."""
    return Places(source).found
