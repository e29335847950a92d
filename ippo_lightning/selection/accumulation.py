"""Gradient accumulation: which micro-batches belong to one optimizer step, and their numbers taken together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.selection.module_interface import accumulated_step
from ippo_lightning.selection.plan_metrics import weight_metrics


class Accumulation:
    """Counts the micro-batches of an optimizer step, and adds up what they log."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._part = 0
        self._metrics: list[tuple[int, dict[str, float]]] = []
        self._weights: list[Tensor] = []

    def next_part(self, trainer: Any, pl_module: Any) -> int | None:
        """Return the number of this micro-batch in its optimizer step, counted from 0; None without accumulation."""
        step = accumulated_step(trainer, pl_module)
        # the trainer's count of optimizer steps, and not the batch's number: the last step of an epoch may be shorter
        is_same = step is not None and step == self._step
        self._part = self._part + 1 if is_same else 0
        if not is_same:
            self._metrics, self._weights = [], []
        self._step = step
        return None if step is None else self._part

    def together(self, metrics: Mapping[str, float], weights: Tensor | None, *, rows: int) -> dict[str, float]:
        """Return the numbers of all micro-batches of this step so far.

        Seconds and counts of episodes are sums; the rest are means over rows.

        Args:
            metrics: of this micro-batch.
            weights: of its rows on all ranks, shape [rows]; None if they were not filtered.
            rows: on this rank.
        """
        self._metrics.append((rows, dict(metrics)))
        if weights is not None:
            self._weights.append(weights)
        if len(self._metrics) == 1:  # without accumulation the numbers stay bit for bit what they are
            return dict(metrics)
        found: dict[str, float] = {}
        for name in dict.fromkeys(name for _, numbers in self._metrics for name in numbers):
            pairs = [(count, numbers[name]) for count, numbers in self._metrics if name in numbers]
            total = sum(count * value for count, value in pairs) / max(sum(count for count, _ in pairs), 1)
            is_sum = name.startswith("time/") or name.endswith("_episodes")
            found[name] = sum(value for _, value in pairs) if is_sum else total
        if self._weights:
            # from the weights themselves: a step's effective sample size and largest weight are no means over its parts
            of_step = weight_metrics(torch.cat(self._weights))
            found.update({name.replace("__", "/"): value for name, value in of_step.items()})
        return found
