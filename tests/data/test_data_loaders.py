"""Rows are split over ranks: training in equal parts, evaluation without repetition."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DistributedSampler

from ippo_lightning.data.loaders import EvaluationSampler, TextRows, collate_rows, evaluation_loader, training_loader

ROWS = [{"prompt": str(number), "example": {"answer": str(number)}} for number in range(11)]


def prompts(loader: object) -> list[str]:
    return [prompt for batch in loader for prompt in batch["prompts"]]


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch):
    """Say which rank of how many this process is."""

    def pretend(rank: int, world: int) -> None:
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda *_: world)
        monkeypatch.setattr(dist, "get_rank", lambda *_: rank)

    return pretend


@pytest.mark.parametrize("world", [1, 2, 3, 5, 12])
def test_ranks_evaluate_every_row_exactly_once(as_rank, world: int) -> None:
    seen = []
    for rank in range(world):
        as_rank(rank, world)
        loader = evaluation_loader(ROWS, batch_size=2)
        shown = prompts(loader)
        assert len(loader) == -(-len(shown) // 2)
        seen += shown
    assert sorted(seen, key=int) == [row["prompt"] for row in ROWS]


def test_ranks_train_on_parts_of_one_order(as_rank) -> None:
    everything = prompts(training_loader(ROWS, batch_size=4, seed=1))
    parts = []
    for rank in range(2):
        as_rank(rank, 2)
        parts.append(prompts(training_loader(ROWS, batch_size=4, seed=1)))
    assert len(parts[0]) == len(parts[1]) == 6
    assert [prompt for pair in zip(*parts, strict=True) for prompt in pair][:11] == everything


def test_another_seed_is_another_order() -> None:
    assert prompts(training_loader(ROWS, batch_size=4, seed=1)) != prompts(training_loader(ROWS, batch_size=4, seed=2))


@pytest.mark.parametrize(
    "make", [evaluation_loader, lambda rows, batch_size: training_loader(rows, batch_size=batch_size, seed=0)]
)
def test_no_rows_are_no_batches(make) -> None:
    loader = make([], batch_size=4)
    assert len(loader) == 0
    assert list(loader) == []


def test_workers_load_the_same() -> None:
    alone = list(evaluation_loader(ROWS, batch_size=4))
    assert list(evaluation_loader(ROWS, batch_size=4, num_workers=1)) == alone


def test_responses_are_there_only_for_demonstrations() -> None:
    assert sorted(collate_rows(ROWS[:2])) == ["examples", "prompts"]
    batch = collate_rows([{**row, "response": "r"} for row in ROWS[:2]])
    assert batch == {"prompts": ["0", "1"], "examples": [{"answer": "0"}, {"answer": "1"}], "responses": ["r", "r"]}


def test_the_trainer_leaves_both_samplers_alone() -> None:
    """Lightning puts a sampler of its own in place of any that is no `DistributedSampler`."""

    class Nothing(LightningModule):
        def test_step(self, batch: object, batch_idx: int) -> None:
            seen.extend(batch["prompts"])

    seen: list[str] = []
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.test(Nothing(), evaluation_loader(ROWS, batch_size=4), verbose=False)
    assert seen == [row["prompt"] for row in ROWS]
    assert isinstance(EvaluationSampler(TextRows(ROWS), num_replicas=2, rank=0), DistributedSampler)
    assert isinstance(training_loader(ROWS, batch_size=4, seed=0).sampler, DistributedSampler)
