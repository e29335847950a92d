"""The numbers of papers, beside those of a comparison where task, model and method are theirs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ippo_lightning.report.display import percent
from ippo_lightning.report.measures import Metric
from ippo_lightning.report.records import Comparison
from ippo_lightning.report.summary import Results
from ippo_lightning.storage.run_folder import COMPARISON

PAPER = "Shu, Zhang and Hullman 2026, arXiv 2604.01597"
PUBLISHED: Mapping[tuple[str, str, str], Mapping[Metric, float]] = MappingProxyType(
    {
        ("gsm8k", "rho-1b", "sft"): {"majority_vote": 0.4352},
        ("gsm8k", "rho-1b", "ppo"): {"majority_vote": 0.5005, "exact_match": 0.4111},
        ("gsm8k", "rho-1b", "paper"): {"majority_vote": 0.5193, "exact_match": 0.4610},
        ("gsm8k", "llama-3-8b", "paper"): {"majority_vote": 0.8021, "exact_match": 0.7336},
        ("math", "rho-1b", "sft"): {"majority_vote": 0.1220},
        ("math", "rho-1b", "ppo"): {"majority_vote": 0.2140},
        ("math", "rho-1b", "paper"): {"majority_vote": 0.2380},
    }
)
"""Task, model and method, as the axes of a comparison name them, to fractions of `PAPER`; its other cells are not known
to this project."""
NOTE = (
    "The number of samples, learning rate, epochs and validation set of the paper are not known here, so its runs and "
    "these may differ in more than the seed. Each of its numbers is one value without an interval."
)
_NAMES: Mapping[Metric, str] = {"exact_match": "Exact match", "majority_vote": "Majority vote"}


@dataclass(frozen=True)
class PublishedRow:
    """One number of a paper and the one of a comparison."""

    title: str
    """Of the method, in the comparison."""
    metric: str
    published: float
    mine: float | None
    """None if no run has finished."""


@dataclass(frozen=True)
class PublishedTable:
    """The numbers of the paper that have a cell in a comparison."""

    rows: list[PublishedRow]
    source: str = PAPER
    note: str = NOTE


def published_table(comparison: Comparison, results: Results) -> PublishedTable | None:
    """Return what `published_rows` finds, with its source; None if there is nothing.

    Args:
        comparison: from `read_comparison`.
        results: from `summarise`.
    """
    rows = published_rows(comparison, results)
    return PublishedTable(rows) if rows else None


def published_rows(comparison: Comparison, results: Results) -> list[PublishedRow]:
    """Return the numbers of the paper that have a cell in a comparison; empty if there is none.

    Args:
        comparison: from `read_comparison`; its folder names the axes of each method.
        results: from `summarise`.
    """
    axes = _axes(comparison)
    rows = []
    for name, method in comparison.methods.items():
        summary = results["methods"].get(name)
        for metric, value in PUBLISHED.get(_cell(axes.get(name)), {}).items():
            mine = None if summary is None else summary[metric]
            rows.append(PublishedRow(title=method.title, metric=_NAMES[metric], published=value, mine=mine))
    return rows


def published_markdown(comparison: Comparison, results: Results) -> str:
    """Return the same as markdown that begins with an empty line; empty if there is none."""
    rows = published_rows(comparison, results)
    if not rows:
        return ""
    lines = ["", f"Beside the numbers of the paper ({PAPER}), %:", ""]
    lines += ["| Method | Metric | Paper | Here |", "|---|---|--:|--:|"]
    for row in rows:
        # A name must not become markdown or HTML.
        title = re.sub(r"([\\`*_\[\]<>|])", r"\\\1", row.title)
        lines.append(f"| {title} | {row.metric} | {percent(row.published, digits=2)} | {percent(row.mine)} |")
    return "\n".join([*lines, "", NOTE]) + "\n"


def _axes(comparison: Comparison) -> Mapping[str, object]:
    """Return task, model and method of each column, as `ippo compare` has written them."""
    try:
        found = json.loads((comparison.root / COMPARISON).read_text(encoding="utf-8"))["axes"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # runs side by side, or an earlier version
        return {}
    return found if isinstance(found, dict) else {}


def _cell(axes: object) -> tuple[str, str, str]:
    if not isinstance(axes, dict):
        return ("", "", "")
    task, model, method = (str(axes.get(axis, ""))[:100] for axis in ("task", "model", "method"))
    return task, model.split("+")[0], method  # behind the model may stand how it trains, as in rho-1b+lora
