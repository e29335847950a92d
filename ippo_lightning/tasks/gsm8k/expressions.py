"""A small calculator with exact fractions. It parses within fixed bounds and never evaluates text as code."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_LENGTH = 200
"""Characters of an expression; a longer one is not read."""
MAX_DEPTH = 20
"""Open brackets and signs before one number; bounds the recursion."""

# a bounded number of digits: products of 200 characters of them stay small enough to be exact and quick
_NUMBER = r"[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18}"
_TOKEN = re.compile(rf"\s*({_NUMBER}|//|[+\-*/()])")
_PLAIN_NUMBER = re.compile(rf"\s*[+\-]?(?:{_NUMBER})\s*\Z")


class ExpressionError(ValueError):
    """The text is not an expression, or is beyond the bounds."""


def calculate(text: str) -> Fraction | None:
    """Return the exact value of an expression of numbers, `+ - * / //` and brackets, with the usual precedence.

    Args:
        text: at most 200 characters, 18 digits on each side of a decimal point, 20 levels of brackets and signs.

    Returns:
        The value, or None for a division by zero.

    Raises:
        ExpressionError: the text is not such an expression.
    """
    if len(text) > MAX_LENGTH:
        raise ExpressionError("too long")
    try:
        return _Parser(_tokens(text)).value()
    except ZeroDivisionError:
        return None


def decimals(text: str) -> int | None:
    """Return the number of decimals of a number as it is written, or None if the text is not just a number."""
    if not _PLAIN_NUMBER.match(text):
        return None
    return len(text.strip().partition(".")[2])


def _tokens(text: str) -> list[str]:
    # a token takes the space before it, so space at the end would be no token
    tokens, position, end = [], 0, len(text.rstrip())
    while position < end:
        found = _TOKEN.match(text, position)
        if found is None:
            raise ExpressionError(f"no token at {position}")
        tokens.append(found.group(1))
        position = found.end()
    return tokens


class _Parser:
    """Recursive descent: a sum of products of signed factors."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0

    def value(self) -> Fraction:
        result = self._sum()
        # without this check, `2 3` would be 2
        if self.position < len(self.tokens):
            raise ExpressionError("something follows the expression")
        return result

    def _next(self, *wanted: str) -> str | None:
        """Take the next token if it is one of `wanted`."""
        if self.position < len(self.tokens) and self.tokens[self.position] in wanted:
            self.position += 1
            return self.tokens[self.position - 1]
        return None

    def _sum(self) -> Fraction:
        result = self._product()
        while sign := self._next("+", "-"):
            term = self._product()
            result = result + term if sign == "+" else result - term
        return result

    def _product(self) -> Fraction:
        result = self._factor()
        while sign := self._next("*", "/", "//"):
            factor = self._factor()
            if sign == "*":
                result *= factor
            else:
                result = result / factor if sign == "/" else Fraction(result // factor)
        return result

    def _factor(self) -> Fraction:
        # signs and brackets alone recurse, so this one counter bounds the recursion
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ExpressionError("too deep")
        if sign := self._next("+", "-"):
            result = self._factor() if sign == "+" else -self._factor()
        elif self._next("("):
            result = self._sum()
            # refused and not closed silently: such a step makes a response nonsense
            if not self._next(")"):
                raise ExpressionError("a bracket stays open")
        else:
            result = self._number()
        self.depth -= 1
        return result

    def _number(self) -> Fraction:
        # at the end of the text, a bracket stands for the number that is missing
        token = self.tokens[self.position] if self.position < len(self.tokens) else ")"
        if token[0] not in "0123456789.":
            raise ExpressionError("a number is missing")
        self.position += 1
        return Fraction(f"{token}0" if token.endswith(".") else token)
