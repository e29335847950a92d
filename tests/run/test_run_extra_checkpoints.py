"""What a callback adds to a checkpoint comes back, or is refused before it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from recording import under_fabric

from ippo_lightning.errors import UserError


class Keeps(Callback):
    """Adds an entry of its own to each checkpoint."""

    def __init__(self, content: Any) -> None:
        self.content, self.found = content, None

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = self.content

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.found = checkpoint["mine"]


def test_an_entry_that_a_callback_adds_comes_back(tmp_path: Path) -> None:
    content = {"numbers": [1, 2.5], "tensor": torch.arange(3)}
    under_fabric(tmp_path, [Keeps(content)], max_iterations=1)
    second = Keeps(content)
    under_fabric(tmp_path, [second], max_iterations=2, resume=True)
    assert second.found["numbers"] == [1, 2.5]
    assert second.found["tensor"].tolist() == [0, 1, 2]


def test_an_entry_that_could_not_be_read_again_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"on_save_checkpoint added \(mine\) what a checkpoint cannot contain"):
        under_fabric(tmp_path, [Keeps(Path("object"))], max_iterations=1)


def test_an_entry_of_the_loop_stays_its_own(tmp_path: Path) -> None:
    class Replaces(Callback):
        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            checkpoint["parameters"] = {}

    with pytest.raises(UserError, match="replaced or removed 'parameters' of a checkpoint"):
        under_fabric(tmp_path, [Replaces()], max_iterations=1)
