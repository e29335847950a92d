"""A comparison replaces a run of other settings only when the new one has passed its checks."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiment_files import change, write
from training_parts import tiny_loop, tiny_module

from ippo_lightning.cli.jobs import Job, is_reusable, run_jobs
from ippo_lightning.cli.main import main
from ippo_lightning.errors import UserError
from ippo_lightning.storage.run_folder import FINGERPRINT_VARIABLE


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def job(folder: Path, fingerprint: str) -> Job:
    return Job(column="ppo", seed=1, folder=folder, arguments=("fit",), fingerprint=fingerprint)


@pytest.mark.parametrize("name", ["history.jsonl", "results.json", "checkpoints/last.ckpt"])
def test_a_run_of_other_settings_is_refused_or_waits_to_be_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    (tmp_path / "fingerprint.txt").write_text("old")
    before = files(tmp_path)
    with pytest.raises(UserError, match="contains a run with other settings; name another folder, or set overwrite"):
        is_reusable(job(tmp_path, "new"), overwrite=False)
    assert is_reusable(job(tmp_path, "new"), overwrite=True) is False
    assert is_reusable(job(tmp_path, "old"), overwrite=False) is (name == "results.json")
    assert files(tmp_path) == before


def test_a_run_has_the_fingerprint_of_its_comparison_and_by_hand_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fingerprint.txt").write_text("old")
    monkeypatch.setenv(FINGERPRINT_VARIABLE, "new")
    tiny_loop(tmp_path, tiny_module(), max_iterations=1).fit()
    assert (tmp_path / "fingerprint.txt").read_text() == "new"
    tiny_loop(tmp_path, tiny_module(), max_iterations=2, resume=True).fit()
    assert (tmp_path / "fingerprint.txt").read_text() == "new"
    monkeypatch.delenv(FINGERPRINT_VARIABLE)
    tiny_loop(tmp_path, tiny_module(), max_iterations=1, overwrite=True).fit()
    assert not (tmp_path / "fingerprint.txt").exists()


@pytest.mark.parametrize(
    ("column", "seed", "shown"),
    [
        ("ppo", 1, "ppo seed 1"),
        ("grpo+average_reward", 1, "grpo+average_rew… seed 1"),
        ("grpo+average_reward", 12345, "grpo+average… seed 12345"),
        ("a" * 17, 2, "a" * 17 + " seed 2"),
        ("ab", 10**30, f"… seed {10**30}"),
    ],
)
def test_a_long_column_is_cut_before_its_seed(column: str, seed: int, shown: str, tmp_path: Path) -> None:
    found = Job(column=column, seed=seed, folder=tmp_path, arguments=(), fingerprint="a")
    assert found.short_name == shown
    assert found.name == f"{column} seed {seed}"


@pytest.mark.slow
def test_a_comparison_that_is_refused_keeps_the_run_that_it_would_replace(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment["callbacks"] = []
    reward = {
        "class_path": "ippo_lightning.rewards.grade_reward",
        "init_args": {"grader": "ippo_lightning.tasks.grade_arithmetic"},
    }
    change(experiment, "model.init_args.reward", reward)
    grid = {"run_dir": str(tmp_path / "compare"), "methods": {"ppo": {"config": [write(experiment, tmp_path)]}}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid), encoding="utf-8")
    run = tmp_path / "compare" / "ppo" / "seed_1"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("fingerprint.txt", "history.jsonl", "results.json", "config.yaml", "checkpoints/last.ckpt"):
        (run / name).write_text("of other settings")
    before = files(run)
    change(experiment, "data.init_args.task.init_args.num_test", 0)  # only the run itself notices that
    write(experiment, tmp_path)
    options = ["--overwrite", "true", "--seeds", "[1]", "--overrides.loop.max_iterations", "2"]
    assert main(["compare", "--config", str(tmp_path / "grid.yaml"), *options]) == 2
    assert "test split has 0 batches" in capsys.readouterr().err
    recorded = json.loads((tmp_path / "compare" / "comparison.json").read_text(encoding="utf-8"))["command"]
    assert recorded == shlex.join(["ippo", "compare", "--config", "grid.yaml", *options]), "as the user called it"
    after = {name: content for name, content in files(run).items() if name not in ("log.txt", ".lock")}
    assert after == before


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always searches the working folder first")
def test_a_run_takes_no_module_of_the_working_folder_for_an_installed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "lightning", "yaml", "rich"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'it_ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    words = ("report", str(tmp_path / "nowhere"))
    refused = Job(column="ppo", seed=1, folder=tmp_path / "run", arguments=words, fingerprint="a")
    with pytest.raises(UserError, match=r"ppo seed 1 failed: folder: .*nowhere"):
        run_jobs([refused], num_parallel=1, threads=1)
    assert not (tmp_path / "it_ran").exists()
