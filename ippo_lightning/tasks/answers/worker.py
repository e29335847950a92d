"""The program of the process that compares answers with math-verify: one JSON object per line in, one out.

It runs alone and imports nothing of this project. Each line in has `gold`, `given` and `seconds`; each line out has
`equal`, or `missing` with a message if math-verify cannot be imported.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
from typing import Any

MEMORY = 2 * 2**30
"""Bytes of address space; a power of a power asks for more than any machine has."""

_GROUP = r"\\(?:text|mbox|math)(?:rm|bf|it|normal)?\s*"
_GROUPS = re.compile(_GROUP)
# 10\text{ cm}^2, or 10 cm. One letter is a variable as often as a unit: 3t must not become 3.
_UNIT = re.compile(rf"(?:{_GROUP}\{{([^{{}}]*)\}}\s*(\^\s*\{{?[0-9]\}}?)?|(?<=[0-9}}\s])([A-Za-z]{{2,}}))[\s.$]*$")
_LETTER_AT_END = re.compile(r"(?:[0-9}\s]|^)\s*[A-Za-z]\s*$")
# Parts of sympy are imported when they are first used, and make their own constants from texts.
_WARM_UP = (
    ("x^2+2x+1", "(x+1)^2"),
    ("x<3", "(-\\infty,3)"),
    ("\\{1,\\sqrt{2}\\}", "1,2^{0.5}"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\x\\end{pmatrix}"),
    ("10\\%", "\\sin(x)"),
)
_DIGITS = re.compile(r"[+-]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})")


def main() -> None:
    """Answer until the parent closes the pipe."""
    # What a library prints must not become an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches each process; the parent decides
    _bound_memory()
    try:
        compare = _comparison()
    except ImportError as error:
        _write(answers, {"missing": str(error)})
        return
    _write(answers, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        _limit(request["seconds"])
        equal = _guarded(compare, request["gold"], request["given"])
        _limit(0)
        _write(answers, {"equal": equal})


class _Expired(BaseException):
    """Not an `Exception`, which the libraries catch."""


def _expire(*_: object) -> None:
    raise _Expired


def _limit(seconds: float) -> None:
    """Limit the processor time of what follows; 0 ends the limit.

    Not the time of the clock: on a busy machine, an answer must not become a wrong one.
    """
    if not hasattr(signal, "setitimer"):  # Windows; there the parent alone watches
        return
    signal.signal(signal.SIGPROF, _expire)
    # Again and again, because a library may catch the first one.
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.5 if seconds else 0)
    # Its default action ends the process, also inside of C code and if the parent has died.
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds + 1 if seconds else 0)


def _guarded(compare: Any, gold: str, given: str) -> bool:
    try:
        return bool(compare(gold, given))
    except (Exception, _Expired):  # the answer is hostile text, and sympy may raise anything
        return False


def _write(answers: Any, answer: dict[str, object]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _bound_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, most))


def _comparison() -> Any:
    """Return `compare(gold, given)` by math-verify, which parses LaTeX by a grammar.

    Raises:
        ImportError: math-verify or its parser is not installed.
    """
    logging.disable(logging.CRITICAL)  # it warns of missing limits, which this process has
    from math_verify import LatexExtractionConfig, LatexNormalizationConfig, parse, verify

    def parsed(text: str, *, units: bool) -> Any:
        normalization = LatexNormalizationConfig(
            basic_latex=True, units=units, malformed_operators=True, nits=True, boxed="all", equations=False
        )
        # Only LaTeX: the other form of math-verify reads expressions with eval.
        config = LatexExtractionConfig(boxed_match_priority=0, normalization_config=normalization)
        return parse(f"\\boxed{{{text}}}", extraction_config=[config], parsing_timeout=None)

    def are_same(gold: str, given: str, *, units: bool) -> bool:
        right, answer = parsed(gold, units=units), parsed(given, units=units)
        return bool(verify(right, answer, timeout_seconds=None)) and _is_proved(right, answer)

    def compare(gold: str, given: str) -> bool:
        if are_same(gold, given, units=False):
            return True
        return _differ_in_one_unit(gold, given) and are_same(gold, given, units=True)

    for gold, given in _WARM_UP:
        compare(gold, given)
    _read_numbers_only()
    return compare


def _differ_in_one_unit(gold: str, given: str) -> bool:
    r"""Return whether one answer ends in a unit that the other one lacks, or both in the same.

    math-verify takes off units, and then everything from the first one on: `30\text{ mph}, 40\text{ mph}` is 30.
    """
    units = []
    for text in (gold, given):
        found = _UNIT.search(text)
        if _LETTER_AT_END.search(text) or len(_GROUPS.findall(text)) > (found is not None and found[1] is not None):
            return False
        parts = found.groups() if found is not None else ()
        units.append("".join(part for part in parts if part).replace(" ", "").strip("~.{}").removesuffix("s").lower())
    return any(units) and ("" in units or units[0] == units[1])


def _is_proved(right: list[Any], answer: list[Any]) -> bool:
    """Return False for two different equations without a solution, which math-verify calls equal.

    It compares their solutions, and finds no difference between none and none: x^2+4x+20=0 and x^2+5x+20=0.
    """
    from sympy import Eq, simplify, solve

    if not (right and answer and isinstance(right[0], Eq) and isinstance(answer[0], Eq)):
        return True
    first, second = (equation.lhs - equation.rhs for equation in (right[0], answer[0]))
    if solve(right[0], right[0].free_symbols):
        return True
    return any(simplify(difference).equals(0 * first) for difference in (first - second, first + second))


def _read_numbers_only() -> None:
    """Keep sympy from turning a text into an expression by Python's own eval.

    The grammar of LaTeX passes it the digits of each number of an answer. From here on, digits are all that it reads.
    """
    from sympy.parsing import sympy_parser

    sympy_parser.parse_expr = _number
    sympy_parser.eval_expr = _refuse


def _number(text: str, *_: object, **__: object) -> Any:
    from sympy import Float, Integer

    digits = text.strip()
    if not _DIGITS.fullmatch(digits):
        raise ValueError("only numbers are read")
    return Float(digits) if "." in digits else Integer(digits)


def _refuse(*_: object, **__: object) -> None:
    raise ValueError("no text is evaluated")


if __name__ == "__main__":
    main()
