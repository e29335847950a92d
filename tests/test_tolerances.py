"""No test passes by being loose: a tolerance above a thousandth has a name, and its name a reason beside it."""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterator
from pathlib import Path

import pytest

LARGEST = 1e-3
KEYWORDS = {"abs", "abs_tol", "atol", "rel", "rel_tol", "rtol"}
# functions that also take tolerances by position, and what they compare before
COMPARED = {"approx": 1, "allclose": 2, "assert_allclose": 2, "isclose": 2}
MODULES = {"np", "numpy", "pytest", "testing", "torch"}
ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def loose_tolerances(tree: ast.AST) -> list[str]:
    """Tolerances above `LARGEST` that are written as numbers where they are used."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = [(call, tolerance, number(tolerance)) for call in calls for tolerance in tolerances(call)]
    return [
        f"line {call.lineno}: {ast.unparse(tolerance)}"
        for call, tolerance, value in found
        if value is not None and abs(value) > LARGEST
    ]


def tolerances(call: ast.Call) -> Iterator[ast.expr]:
    """What a call hands over as a tolerance: by name, in a dictionary written on the spot, or by position."""
    for keyword in call.keywords:
        if keyword.arg in KEYWORDS:
            yield keyword.value
        elif keyword.arg is None and isinstance(keyword.value, ast.Dict):
            pairs = zip(keyword.value.keys, keyword.value.values, strict=True)
            yield from (value for key, value in pairs if isinstance(key, ast.Constant) and key.value in KEYWORDS)
    owner, _, name = ast.unparse(call.func).rpartition(".")
    if name in COMPARED:
        # a tensor's own method has compared itself already
        is_method = owner and owner.rpartition(".")[2] not in MODULES
        yield from call.args[COMPARED[name] - bool(is_method) :]


def number(expression: ast.expr) -> float | None:
    """The value of an expression made of numbers alone; none where a name takes part."""
    if isinstance(expression, ast.Constant):
        is_number = isinstance(expression.value, (int, float)) and not isinstance(expression.value, bool)
        return float(expression.value) if is_number else None
    if isinstance(expression, ast.UnaryOp) and isinstance(expression.op, ast.USub):
        value = number(expression.operand)
        return None if value is None else -value
    if isinstance(expression, ast.BinOp) and type(expression.op) in ARITHMETIC:
        left, right = number(expression.left), number(expression.right)
        return None if left is None or right is None else ARITHMETIC[type(expression.op)](left, right)
    return None


@pytest.mark.parametrize(
    "code",
    [
        "pytest.approx(1.0, rel=0.05)",
        "pytest.approx(1.0, 0.05)",
        "approx(1.0, 1e-6, 0.5)",
        "assert_close(a, b, rtol=0, atol=1)",
        "assert_close(a, b, **{'rtol': 0.1})",
        "math.isclose(a, b, rel_tol=2 * 0.02)",
        "torch.allclose(a, b, 1e-1)",
        "a.allclose(b, 1e-1)",
        "assert_close(a, b, atol=2.0**-3)",
    ],
)
def test_the_search_for_loose_tolerances_finds(code: str) -> None:
    assert len(loose_tolerances(ast.parse(code))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "pytest.approx(5.0, rel=1e-3)",
        "pytest.approx(5.0)",
        "assert_close(a, b, rtol=0, atol=EIGHT_BITS)",
        "assert_close(a, b, atol=step * 0.5)",
        "assert_close(a, b, **EXACT)",
        "torch.allclose(a, b, 1e-6, 1e-6, True)",
        "a.allclose(b)",
        "abs(a - b)",
        "SINGLE_PRECISION = 0.5",
    ],
)
def test_the_search_for_loose_tolerances_leaves_alone(code: str) -> None:
    assert not loose_tolerances(ast.parse(code))


def test_a_loose_tolerance_has_a_name(repository: Path) -> None:
    files = sorted((repository / "tests").rglob("*.py"))
    found = {str(path.relative_to(repository)): loose_tolerances(ast.parse(path.read_text())) for path in files}
    assert {"tests/test_tolerances.py", "tests/maths/test_maths_kl.py"} <= set(found)
    assert not {path: lines for path, lines in found.items() if lines}
