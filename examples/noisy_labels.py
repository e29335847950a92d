"""A plain supervised project: the filter takes wrongly labelled rows out of each training batch.

The module has no method that the filter knows; three functions take their place.

python examples/noisy_labels.py
"""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from ippo_lightning.callbacks import InfluenceFilter

NOISE = 0.4


class Classifier(LightningModule):
    """Two layers and a cross-entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 3))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the batch's loss."""
        inputs, labels = batch
        return cross_entropy(self.network(inputs), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def row_losses(module: Classifier, batch: list[Tensor]) -> Tensor:
    """Return one loss per row."""
    return cross_entropy(module.network(batch[0]), batch[1], reduction="none")


def clean_loss(module: Classifier, batch: list[Tensor]) -> Tensor:
    """Return the loss on rows whose labels are known to be right."""
    return cross_entropy(module.network(batch[0]), batch[1])


def make_rows(count: int, *, noise: float) -> TensorDataset:
    """Return inputs with labels, a fraction of which is replaced by random ones."""
    inputs = torch.randn(count, 20)
    teacher = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    labels = (inputs @ teacher).argmax(dim=1)
    is_noisy = torch.rand(count) < noise
    return TensorDataset(inputs, torch.where(is_noisy, torch.randint(3, (count,)), labels))


def accuracy(module: Classifier, rows: TensorDataset) -> float:
    """Return the fraction of right predictions."""
    inputs, labels = rows.tensors
    return float((module.network(inputs).argmax(dim=1) == labels).float().mean())


def main() -> None:
    """Train without and with the filter; 64 rows have clean labels."""
    torch.manual_seed(0)
    training, clean, test = make_rows(768, noise=NOISE), make_rows(64, noise=0), make_rows(2048, noise=0)
    influence = InfluenceFilter(
        demonstrations=[list(clean.tensors)],
        episode_losses=row_losses,
        validation_loss=clean_loss,
        buffer=lambda module, batch: batch,
        power=0,  # the loss reads no weights: rows are kept or dropped
        min_keep=1,  # a batch without rows has no mean loss
    )
    settings: dict[str, Any] = {
        "max_epochs": 40,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    for name, callbacks in (("plain", []), ("filtered", [influence])):
        torch.manual_seed(0)
        module = Classifier()
        Trainer(**settings, callbacks=callbacks).fit(module, DataLoader(training, batch_size=64, shuffle=True))
        print(f"{name}: {accuracy(module, test):.1%} right on clean labels")


if __name__ == "__main__":
    main()
