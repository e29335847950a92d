"""Loaders of text batches: sized, reproducible, shared out over ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ippo_lightning.distributed.collectives import rank, world_size

Row = Mapping[str, Any]
"""One prompt: `prompt`, `example`, and `response` where it is a demonstration."""


class TextRows(Dataset[Row]):
    """Prompts or demonstrations in memory.

    Args:
        rows: see `Row`.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


class EvaluationSampler(DistributedSampler[int]):
    """Every n-th row for each rank, without the repeated rows that would make the ranks' shares equal.

    A `DistributedSampler` by type, so that Lightning does not put one of its own in its place.
    """

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices())

    def __len__(self) -> int:
        return len(self._indices())

    def _indices(self) -> range:
        return range(self.rank, len(cast(TextRows, self.dataset)), self.num_replicas)


def collate_rows(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return one batch: `prompts`, `examples`, and `responses` where the rows are demonstrations.

    Args:
        rows: at least one.
    """
    batch = {"prompts": [row["prompt"] for row in rows], "examples": [dict(row["example"]) for row in rows]}
    if "response" in rows[0]:
        batch["responses"] = [row["response"] for row in rows]
    return batch


def training_loader(rows: Sequence[Row], *, batch_size: int, seed: int, num_workers: int = 0) -> DataLoader[Row]:
    """Return a loader that draws each epoch in an order of its own, the same for the same seed and epoch.

    Args:
        rows: of all ranks; each rank gets its part.
        batch_size: rows a batch, on each rank.
        seed: of the order.
        num_workers: processes that collate.
    """
    dataset = TextRows(rows)
    sampler: DistributedSampler[int] | None = None
    if rows:
        # this sampler has set_epoch, so the order of an epoch can be had again when a run is resumed
        sampler = DistributedSampler(dataset, num_replicas=world_size(), rank=rank(), shuffle=True, seed=seed)
    return _loader(dataset, batch_size=batch_size, sampler=sampler, num_workers=num_workers)


def evaluation_loader(rows: Sequence[Row], *, batch_size: int, num_workers: int = 0) -> DataLoader[Row]:
    """Return a loader in the order of the rows; each rank gets every n-th row, no row comes twice.

    Args:
        rows: of all ranks.
        batch_size: rows a batch.
        num_workers: processes that collate.
    """
    dataset = TextRows(rows)
    sampler = EvaluationSampler(dataset, num_replicas=world_size(), rank=rank(), shuffle=False) if rows else None
    return _loader(dataset, batch_size=batch_size, sampler=sampler, num_workers=num_workers)


def _loader(
    dataset: TextRows, *, batch_size: int, sampler: DistributedSampler[int] | None, num_workers: int
) -> DataLoader[Row]:
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=collate_rows,
        num_workers=num_workers,
        # a stream of its own for the workers' seeds: beginning an epoch leaves that of training alone
        generator=torch.Generator().manual_seed(0),
    )
