"""How frequent each label is, for any labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ippo_lightning.errors import UserError
from ippo_lightning.metrics.functional import fraction
from ippo_lightning.tasks import MAX_LABEL_LENGTH, Label, label_text

KNOWN_LABELS = tuple(label.value for label in Label)
MAX_LABELS = 64
"""Different labels that are counted separately."""
OTHER_LABELS = "other_labels"
"""What the rarest labels are counted as if there are more."""

# Not 0, which is the code of a character.
_NO_CHARACTER = -1


class LabelFractions(Metric):
    """Fraction of the responses with each label; no entries if no response has a label.

    If all labels seen are this library's own, each of those has an entry, also at 0; otherwise only those seen have
    one. Beyond 64 different labels the rarest are counted together as `other_labels`.

    Raises:
        UserError: in `update`, a label is too long.

    Example:
        >>> metric = LabelFractions()
        >>> metric.update(["polite", "rude", "polite", None])
        >>> {label: float(value) for label, value in metric.compute().items()}
        {'polite': 0.5, 'rude': 0.25}
    """

    full_state_update = False
    table: Tensor
    num_responses: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Ranks see different labels. A table of one fixed shape, with the labels in it as numbers, goes through
        # torchmetrics' own gathering on any backend, also where a rank has seen nothing.
        self.add_state("table", _table({}), dist_reduce_fx=_merged)
        self.add_state("num_responses", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, labels: Sequence[str | None]) -> None:
        """Add responses.

        Args:
            labels: one per response; None for a response without one.
        """
        seen = [label_text(label) for label in labels if label is not None]
        for label in seen:
            if not 0 < len(label) <= MAX_LABEL_LENGTH:
                raise UserError(
                    f"metrics.labels: {label!r:.60} is no label; expected 1 to {MAX_LABEL_LENGTH} characters"
                )
        self.table = _table(_counts(self.table) + Counter(seen)).to(self.table)
        self.num_responses += len(labels)

    def compute(self) -> dict[str, Tensor]:
        """Return the fractions by label, in [0, 1], together 1 if each response has a label."""
        counts = _counts(self.table)
        order = {label: place for place, label in enumerate(KNOWN_LABELS)}
        names = sorted(counts, key=lambda label: (order.get(label, len(order)), label))
        if counts and set(counts) <= set(order):
            names = list(KNOWN_LABELS)
        return {label: fraction(self.num_responses.new_tensor(counts[label]), self.num_responses) for label in names}


def _merged(tables: Tensor) -> Tensor:
    """Return one table from those of several ranks or batches.

    Args:
        tables: shape [parts, MAX_LABELS, 1 + MAX_LABEL_LENGTH].
    """
    counts: Counter[str] = Counter()
    for table in tables:
        counts += _counts(table)
    return _table(counts).to(tables)


def _table(counts: Mapping[str, int]) -> Tensor:
    """Return one row per label: its count, then its characters; int64, shape [MAX_LABELS, 1 + MAX_LABEL_LENGTH]."""
    table = torch.full((MAX_LABELS, 1 + MAX_LABEL_LENGTH), _NO_CHARACTER, dtype=torch.int64)
    table[:, 0] = 0
    for row, (label, count) in enumerate(_folded(counts).items()):
        table[row, : 1 + len(label)] = torch.tensor([count, *map(ord, label)])
    return table


def _counts(table: Tensor) -> Counter[str]:
    """Return what `_table` was made from."""
    rows = [row for row in table.tolist() if row[0] > 0]
    return Counter({"".join(chr(code) for code in row[1:] if code != _NO_CHARACTER): row[0] for row in rows})


def _folded(counts: Mapping[str, int]) -> Mapping[str, int]:
    """Return at most MAX_LABELS labels, the rarest of more of them counted together."""
    if len(counts) <= MAX_LABELS:
        return counts
    # by text where counts are equal, so that every rank folds the same ones
    frequent = sorted(counts.keys() - {OTHER_LABELS}, key=lambda label: (-counts[label], label))[: MAX_LABELS - 1]
    kept = {label: counts[label] for label in frequent}
    return {**kept, OTHER_LABELS: sum(counts.values()) - sum(kept.values())}
