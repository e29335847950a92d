"""The folder of checkpoints: the newest whole one is found under any name, and what is damaged is never loaded."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_parts import same, tiny_loop, tiny_module, trainable

from ippo_lightning.errors import UserError
from ippo_lightning.run.checkpoint_folder import CheckpointFolder, read_named
from ippo_lightning.run.checkpoints import read_checkpoint, write_checkpoint

SETTINGS: dict[str, Any] = {
    "max_iterations": 3,
    "evaluate_every_n_iterations": 1,
    "best_metric": "label/wrong_answer",
    "keep_last_checkpoints": 3,
}
NUM_FLIPS = 1000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three iterations with three checkpoints."""
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    tiny_loop(folder, tiny_module(), **SETTINGS).fit()
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The parameters after four iterations."""
    module = tiny_module()
    tiny_loop(tmp_path_factory.mktemp("whole") / "run", module, **{**SETTINGS, "max_iterations": 4}).fit()
    return trainable(module)


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy of the run whose checkpoints are files of their own, as on a file system without hard links."""
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def iteration(path: Path) -> int:
    return read_checkpoint(path)["progress"]["iteration"]


def checkpoint(run: Path, number: int) -> Path:
    return run / "checkpoints" / f"iteration_{number:07d}.ckpt"


def go_on(run: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """Resume to the fourth iteration; return the parameters."""
    module = tiny_module()
    tiny_loop(run, module, **{**SETTINGS, "max_iterations": 4, "resume": True, **changes}).fit()
    return trainable(module)


def test_no_flipped_bit_is_silent(run: Path, tmp_path: Path) -> None:
    chance, written = random.Random(0), checkpoint(run, 3).read_bytes()
    path = tmp_path / "flipped.ckpt"
    assert len(written) > NUM_FLIPS
    path.write_bytes(written)
    with path.open("r+b") as file:
        for place in chance.sample(range(len(written)), NUM_FLIPS):
            file.seek(place)
            file.write(bytes([written[place] ^ 1 << chance.randrange(8)]))
            file.flush()
            with pytest.raises(UserError, match="cannot be read"):
                read_checkpoint(path)
            file.seek(place)
            file.write(written[place : place + 1])
    assert iteration(path) == 3


def test_no_cut_is_silent(run: Path, tmp_path: Path) -> None:
    written, path = checkpoint(run, 3).read_bytes(), tmp_path / "cut.ckpt"
    for size in [*range(0, len(written), len(written) // 60), len(written) - 65, len(written) - 1]:
        path.write_bytes(written[:size])
        with pytest.raises(UserError, match="cannot be read"):
            read_checkpoint(path)


def test_names_that_a_kill_left_behind_are_not_believed_and_are_corrected(
    copied: Path, whole: dict[str, torch.Tensor]
) -> None:
    folder = CheckpointFolder(copied / "checkpoints")
    best = read_checkpoint(checkpoint(copied, 3))["best"]["iteration"]
    for path in (folder.last, folder.best):
        path.unlink()
        os.link(checkpoint(copied, 1 if best != 1 else 2), path)
    assert folder.read("last")[0] == checkpoint(copied, 3)
    assert read_named(folder.last)[1]["progress"]["iteration"] == 3
    assert read_named(folder.best)[1]["progress"]["iteration"] == best
    assert same(go_on(copied), whole)
    assert folder.last.samefile(checkpoint(copied, 4))
    assert iteration(folder.best) == read_checkpoint(folder.last)["best"]["iteration"]


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_run_goes_on_from_any_name_that_is_left(name: str, copied: Path, whole: dict[str, torch.Tensor]) -> None:
    for path in (copied / "checkpoints").iterdir():
        if path.name != name:
            path.unlink()
    assert same(go_on(copied), whole)
    # a run that began again would have the lines of four iterations, and so has one that went on
    assert len((copied / "history.jsonl").read_text(encoding="utf-8").splitlines()) == 4


def test_a_damaged_checkpoint_is_set_aside_and_does_not_count_as_one_of_the_newest(
    copied: Path, whole: dict[str, torch.Tensor]
) -> None:
    content = bytearray(checkpoint(copied, 3).read_bytes())
    content[len(content) // 2] ^= 4
    for path in (checkpoint(copied, 3), copied / "checkpoints" / "last.ckpt"):
        path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"iteration_0000003.ckpt cannot be read .*; an older one is used"):
        assert same(go_on(copied, keep_last_checkpoints=1), whole)
    names = sorted(path.name for path in (copied / "checkpoints").iterdir())
    assert names == ["best.ckpt", "iteration_0000003.ckpt.damaged", "iteration_0000004.ckpt", "last.ckpt"]
    assert iteration(copied / "checkpoints" / "last.ckpt") == 4


def test_the_best_checkpoint_is_that_of_the_best_evaluation_or_an_error(copied: Path) -> None:
    folder = CheckpointFolder(copied / "checkpoints")
    best = read_checkpoint(checkpoint(copied, 3))["best"]["iteration"]
    assert best < 3
    assert iteration(folder.read("best")[0]) == best
    for path in (folder.best, checkpoint(copied, best)):
        path.unlink()
    with pytest.raises(UserError, match=rf"expected that of the best evaluation, of iteration {best}"):
        folder.read("best")


def test_a_run_without_a_best_evaluation_says_so(tmp_path: Path) -> None:
    tiny_loop(tmp_path / "run", tiny_module(), max_iterations=1).fit()
    with pytest.raises(UserError, match=r"knows no best evaluation .*; expected last or a path"):
        CheckpointFolder(tmp_path / "run" / "checkpoints").read("best")


def test_a_checkpoint_of_the_earlier_format_still_goes_on(copied: Path, whole: dict[str, torch.Tensor]) -> None:
    state: Any = torch.load(checkpoint(copied, 3), weights_only=True)
    del state["logs"]
    for path in (copied / "checkpoints").iterdir():
        path.unlink()
    torch.save({**state, "format": 2}, checkpoint(copied, 3))
    os.link(checkpoint(copied, 3), copied / "checkpoints" / "last.ckpt")
    assert same(go_on(copied), whole)


def test_a_checkpoint_of_this_format_without_its_checksum_is_refused(copied: Path) -> None:
    torch.save(torch.load(checkpoint(copied, 3), weights_only=True), checkpoint(copied, 3))
    with pytest.raises(UserError, match="the checksum at its end is missing or damaged"):
        read_checkpoint(checkpoint(copied, 3))


def test_a_checkpoint_stays_a_file_that_torch_loads(copied: Path) -> None:
    state = torch.load(checkpoint(copied, 3), weights_only=True)
    write_checkpoint(state, copied / "again.ckpt")
    again = torch.load(copied / "again.ckpt", weights_only=True, mmap=True)
    assert same(state["parameters"], again["parameters"])
