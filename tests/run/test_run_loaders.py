"""What a data module may return as a loader, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset
from training_parts import tiny_data, tiny_loop, tiny_module

from ippo_lightning.errors import UserError
from ippo_lightning.run.loaders import length_of, loader_of


class Returns(LightningDataModule):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def train_dataloader(self) -> Any:
        return self.value


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        while True:
            yield {"prompt": "1+1?", "example": {}}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "train_dataloader returned NoneType; expected a DataLoader, a list of batches"),
        ("batches", "train_dataloader returned str; expected a DataLoader"),
        (3, "train_dataloader returned int; expected a DataLoader"),
        ([], r"the training split has 0 batches; expected at least 1 \(is batch_size too large\?\)"),
        ([DataLoader([1]), DataLoader([2])], "train_dataloader returned several loaders"),
        ({"a": DataLoader([1])}, "train_dataloader returned several loaders"),
    ],
    ids=["none", "text", "number", "empty", "list of loaders", "loaders by name"],
)
def test_what_is_no_loader_is_one_line(value: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"data: {said}") as caught:
        loader_of(Returns(value), "training")
    assert "\n" not in str(caught.value)


def test_a_data_module_without_the_method_is_one_line() -> None:
    with pytest.raises(UserError, match=r"data: Returns\.val_dataloader is not defined; expected a DataLoader"):
        loader_of(Returns([1]), "validation")


def test_a_wrong_loader_ends_the_run_before_its_first_iteration(tmp_path: Path) -> None:
    data = tiny_data()
    data.train_dataloader = lambda: None  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(UserError, match="train_dataloader returned NoneType"):
        tiny_loop(tmp_path / "run", tiny_module(), data=data).fit()
    assert not (tmp_path / "run" / "history.jsonl").exists()


def test_only_a_loader_that_knows_its_length_has_one() -> None:
    assert length_of([1, 2]) == 2
    assert length_of(DataLoader([1, 2, 3], batch_size=2)) == 2
    assert length_of(DataLoader(Endless())) is None
    assert length_of(iter([1])) is None
