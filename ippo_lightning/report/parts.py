"""Which parts of the model the scores come from."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from ippo_lightning.report.records import Comparison, Method

PARTS = {
    "influence/part_attention": "Attention",
    "influence/part_mlp": "MLP",
    "influence/part_embedding": "Embedding and head",
    "influence/part_norm": "Norms",
    "influence/part_other": "Other",
}
"""Key in the history to its name in the report, in display order."""


def model_parts(comparison: Comparison, named: Mapping[str, str]) -> dict[str, dict[str, float | None]]:
    """Average recorded numbers over iterations and seeds.

    Args:
        comparison: the runs.
        named: key in the history to its name, such as `PARTS`.

    Returns:
        Name of the number to method name to the mean. The mean is None if the method never recorded the number. Numbers
        and methods without any record are left out. Empty if there is only one number, because there is no other
        to compare it with.
    """
    methods = {name: method for name, method in comparison.methods.items() if _recorded(method, named)}
    found = {
        title: {name: _mean(method, key) for name, method in methods.items()}
        for key, title in named.items()
        if any(_mean(method, key) is not None for method in methods.values())
    }
    return found if len(found) > 1 else {}


def _recorded(method: Method, named: Mapping[str, str]) -> bool:
    # A method without any of the numbers would only add a column of dashes.
    return any(_mean(method, key) is not None for key in named)


def _mean(method: Method, key: str) -> float | None:
    # Only some iterations measure these numbers, so the mean is over the values and not over the iterations.
    values = [value for run in method.finished for value in run.series(key).values()]
    return fmean(values) if values else None
