"""The influence filter in projects that know nothing of ours: what it finds, and what it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ippo_lightning.callbacks import InfluenceFilter, ScoringSettings
from ippo_lightning.errors import UserError

FLOAT32_ROUNDING = 1e-5


class Regression(LightningModule):
    """A plain supervised module; remembers what it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.seen: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append(batch)
        columns = list(batch.values()) if isinstance(batch, dict) else batch
        return (self.network(columns[0]).squeeze(-1) - columns[1]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def losses(module: Regression, batch: Any) -> Tensor:
    inputs, targets = (batch["inputs"], batch["targets"]) if isinstance(batch, dict) else batch[:2]
    return (module.network(inputs).squeeze(-1) - targets).square()


def mean_loss(module: Regression, batch: Any) -> Tensor:
    return losses(module, batch).mean()


def rows(count: int = 8, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, generator=generator), torch.randn(count, generator=generator)


# drawn while the tests are collected, before any of them sets the seed
GOOD = [list(rows(16, torch.Generator().manual_seed(0)))]


def influence(**changes: Any) -> InfluenceFilter:
    settings: dict[str, Any] = {
        "episode_losses": losses,
        "validation_loss": mean_loss,
        "buffer": lambda module, batch: batch,
        "demonstrations": GOOD,
        "power": 0,
        "min_keep": 1,
    }
    return InfluenceFilter(**{**settings, **changes})


def trained(callback: InfluenceFilter, folder: Path, *, collate: Any = None, module: Any = None) -> Any:
    module = module or Regression()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[callback],
    )
    trainer.fit(module, DataLoader(TensorDataset(*rows(24)), batch_size=8, collate_fn=collate))
    return module


def as_dictionary(items: Any) -> dict[str, Any]:
    inputs, targets = zip(*items, strict=True)
    return {"inputs": torch.stack(inputs), "targets": torch.stack(targets), "names": [str(row) for row in range(8)]}


def with_weights(items: Any) -> dict[str, Any]:
    return {**as_dictionary(items), "weights": torch.ones(len(items)), "rewards": torch.arange(float(len(items)))}


def expected_scores(module: Regression, batch: Any) -> Tensor:
    """One plain backward per row, and one for the good rows."""
    parameters = list(module.parameters())
    good = torch.autograd.grad(mean_loss(module, GOOD[0]), parameters)
    found = []
    for loss in losses(module, batch):
        own = torch.autograd.grad(loss, parameters, retain_graph=True)
        found.append(sum((a * b).sum() for a, b in zip(own, good, strict=True)))
    return torch.stack(found)  # type: ignore[arg-type]


@pytest.mark.parametrize("collate", [None, as_dictionary], ids=["list", "dictionary"])
def test_rows_that_point_away_leave_the_batch(collate: Any, tmp_path: Path) -> None:
    module = Regression()
    start = {name: value.clone() for name, value in module.state_dict().items()}
    before: list[Any] = []

    def buffer(module: Regression, batch: Any) -> Any:
        before.append(dict(batch) if isinstance(batch, dict) else list(batch))
        return batch

    trained(influence(buffer=buffer), tmp_path, collate=collate, module=module)
    first = module.seen[0]
    module.load_state_dict(start)
    keep = expected_scores(module, before[0]) > 0
    assert 0 < int(keep.sum()) < 8
    if collate is None:
        assert torch.equal(first[0], before[0][0][keep])
        assert torch.equal(first[1], before[0][1][keep])
    else:
        assert torch.equal(first["targets"], before[0]["targets"][keep])
        assert first["names"] == [str(row) for row in range(8) if keep[row]]


def test_a_column_of_weights_is_written_and_no_row_leaves(tmp_path: Path) -> None:
    callback = influence(power=1.0, on_empty="skip", min_keep=0)
    module = trained(callback, tmp_path, collate=with_weights)
    weights = module.seen[0]["weights"]
    assert len(weights) == len(module.seen[0]["inputs"]) == 8
    assert float(weights[weights > 0].mean()) == pytest.approx(1, rel=FLOAT32_ROUNDING)
    assert weights[weights > 0].unique().numel() > 1


def test_a_module_may_offer_everything_itself(tmp_path: Path) -> None:
    class Whole(Regression):
        def episode_losses(self, episodes: Any) -> Tensor:
            return losses(self, episodes)

        def validation_loss(self, batch: Any) -> Tensor:
            return mean_loss(self, batch)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.buffer = with_weights(list(zip(*rows(), strict=True)))

        def on_train_start(self) -> None:
            self.on_train_batch_end(None, None, 0)

    module = trained(InfluenceFilter(demonstrations=GOOD), tmp_path, module=Whole())
    assert set(module.trainer.callback_metrics) >= {"influence/scored_kept_fraction", "influence/gradient_norm"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"episode_losses": None}, "episode_losses: null, and Regression has no method episode_losses"),
        ({"validation_loss": None}, "validation_loss: null, and Regression has no method validation_loss"),
        ({"demonstrations": None}, "demonstrations: null, and .* has no influence_dataloader"),
        ({"power": 1.0}, "power: 1 weights rows, and the buffer has no column 'weights'"),
        ({"min_keep": 0}, "on_empty: skip would leave an empty buffer"),
        ({"buffer": lambda module, batch: tuple(batch)}, "a tuple cannot be filtered in place"),
        ({"buffer": lambda module, batch: {"text": ["a"]}}, "it contains no tensor"),
        ({"rule": "reward"}, "rule: reward needs a column 'rewards' of 8 rows"),
        ({"rule": "advantage_sign"}, "rule: advantage_sign needs a column 'advantages'"),
        ({"scoring": ScoringSettings(normalise="length")}, "normalise: length needs a column 'lengths'"),
    ],
)
def test_what_is_missing_is_named_in_one_line(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as raised:
        trained(influence(**changes), tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("callback", "field"),
    [
        (InfluenceFilter(), "episode_losses"),
        (InfluenceFilter(episode_losses=losses), "validation_loss"),
    ],
)
def test_a_project_that_gives_nothing_to_score_does_not_begin(
    callback: InfluenceFilter, field: str, tmp_path: Path
) -> None:
    module = Regression()
    for _ in range(2):  # each fit, also the second one of a process
        with pytest.raises(UserError, match=rf"InfluenceFilter\.{field}: null.* and buffer, or call influence\.apply"):
            trained(callback, tmp_path, module=module)
    assert module.seen == []


def test_the_losses_of_a_part_that_is_filtered_by_hand_are_found(tmp_path: Path) -> None:
    class Part(nn.Linear):
        def episode_losses(self, rows: Any) -> Tensor:
            return (self(rows[0]).squeeze(-1) - rows[1]).square()

        def validation_loss(self, batch: Any) -> Tensor:
            return self.episode_losses(batch).mean()

    class Whole(Regression):
        def __init__(self, callback: InfluenceFilter) -> None:
            super().__init__()
            self.network, self.callback = Part(3, 1), callback

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.callback.apply(self.network, batch)
            return super().training_step(batch, batch_idx)

    callback = InfluenceFilter(demonstrations=GOOD, power=0, min_keep=1)
    assert len(trained(callback, tmp_path, module=Whole(callback)).seen) == 3


@pytest.mark.parametrize(
    "demonstrations",
    [(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)), {"inputs": torch.zeros(4, 3)}, torch.zeros(4, 3)],
)
def test_one_batch_in_place_of_a_list_of_batches_is_named(demonstrations: Any) -> None:
    with pytest.raises(UserError, match=r"demonstrations: a .* is one batch; expected .* demonstrations=\[batch\]"):
        influence(demonstrations=demonstrations)


def test_a_control_by_reward_reads_the_column(tmp_path: Path) -> None:
    module = trained(influence(rule="reward", on_empty="skip", min_keep=0), tmp_path, collate=with_weights)
    assert (module.seen[0]["weights"] > 0).tolist() == [False] * 4 + [True] * 4


def test_watching_changes_nothing(tmp_path: Path) -> None:
    module = trained(influence(monitor_only=True, power=1.0), tmp_path)
    assert [len(batch[0]) for batch in module.seen] == [8, 8, 8]
