"""Names of metrics for people, where files have other keys."""

from __future__ import annotations

import re


def shown_metric(name: str, *, k: object = None) -> str:
    """Return the name of a metric as a person reads it: pass@k has its k.

    Args:
        name: a key of a file.
        k: samples per prompt behind `pass_at_k`; None if unknown.

    Example:
        >>> shown_metric("pass_at_k", k=8), shown_metric("pass_at_4"), shown_metric("exact_match")
        ('pass@8', 'pass@4', 'exact_match')
    """
    found = re.fullmatch(r"pass_at_(k|\d+)", name)
    if found is None:
        return name
    return f"pass@{k if found[1] == 'k' and k is not None else found[1]}"
