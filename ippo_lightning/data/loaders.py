"""Loaders of text batches: reproducible, and split over ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ippo_lightning.distributed.collectives import rank, world_size
from ippo_lightning.tasks import Row, row_prompt


class TextRows(Dataset[Row]):
    """Prompts or demonstrations in memory.

    Args:
        rows: see `ippo_lightning.tasks.Row`.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


class EvaluationSampler(DistributedSampler[int]):
    """Every n-th row for each rank, without the repeated rows that would give all ranks the same number.

    It is a `DistributedSampler` by type, because Lightning replaces any other sampler by one of its own.
    """

    def __iter__(self) -> Iterator[int]:
        # The base class repeats rows until all ranks have equally many, and metrics would count those twice.
        return iter(self._indices())

    def __len__(self) -> int:
        return len(self._indices())

    def _indices(self) -> range:
        # recomputed: the length of the base class counts the repeated rows
        return range(self.rank, len(cast(TextRows, self.dataset)), self.num_replicas)


def collate_rows(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return one batch: `prompts`, `examples`, and `responses` if the rows are demonstrations.

    Args:
        rows: at least one.
    """
    # copies of the examples: a reward or a callback may write into them
    examples = [dict(row["example"]) for row in rows]
    batch: dict[str, list[Any]] = {"prompts": [row_prompt(row) for row in rows], "examples": examples}
    # One row tells for all: a batch comes from one split.
    if "response" in rows[0]:
        batch["responses"] = [row["response"] for row in rows]
    return batch


def training_loader(rows: Sequence[Row], *, batch_size: int, seed: int, num_workers: int = 0) -> DataLoader[Row]:
    """Return a loader whose order depends on seed and epoch, and on nothing else.

    Args:
        rows: of all ranks; each rank gets its part.
        batch_size: rows per batch, on each rank.
        seed: of the order.
        num_workers: processes that collate.
    """
    dataset = TextRows(rows)
    # A sampler of no rows is an error; without one, the loader is empty, and the caller reports that.
    sampler: DistributedSampler[int] | None = None
    if rows:
        # this sampler has set_epoch, so a resumed run gets the order of its epoch again
        sampler = DistributedSampler(dataset, num_replicas=world_size(), rank=rank(), shuffle=True, seed=seed)
    return _loader(dataset, batch_size=batch_size, sampler=sampler, num_workers=num_workers)


def evaluation_loader(rows: Sequence[Row], *, batch_size: int, num_workers: int = 0) -> DataLoader[Row]:
    """Return a loader in the order of the rows; each rank gets every n-th row, and no row comes twice.

    Args:
        rows: of all ranks.
        batch_size: rows per batch.
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
        # the workers' seeds come from a generator of their own: a new epoch draws nothing from that of training
        generator=torch.Generator().manual_seed(0),
    )
