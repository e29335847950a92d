"""Runs of a comparison as processes: they are stopped with it, and no run under way is removed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from experiment_files import change, write

from ippo_lightning.cli.jobs import Job, _stop, collected_signals, is_reusable
from ippo_lightning.cli.main import main
from ippo_lightning.errors import UserError
from ippo_lightning.storage.run_folder import COMPARISON, FINGERPRINT, FOLDER_VARIABLE

PATIENCE = 120
"""Seconds until a process has imported everything, on a busy machine."""


@contextmanager
def locked_by_another_process(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    code = (
        "from pathlib import Path; from ippo_lightning.storage.locks import hold\n"
        f"lock = hold(Path({str(folder)!r})); print(lock is not None)\n"
        "import sys; sys.stdout.flush(); sys.stdin.read()"
    )
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield
        process.communicate()


def job_in(folder: Path) -> Job:
    return Job(column="ppo", seed=1, folder=folder, arguments=(), fingerprint="new")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_under_way_is_not_removed(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FINGERPRINT).write_text("old", encoding="utf-8")
    (tmp_path / "run" / "history.jsonl").write_text("{}\n", encoding="utf-8")
    with (
        locked_by_another_process(tmp_path / "run"),
        pytest.raises(UserError, match=r"run_dir: a run is under way in .*; wait for it, stop it, or name another"),
    ):
        is_reusable(job_in(tmp_path / "run"), overwrite=overwrite)
    assert (tmp_path / "run" / "history.jsonl").exists()
    if overwrite:
        assert not is_reusable(job_in(tmp_path / "run"), overwrite=True)


@pytest.mark.parametrize("command", ["fit", "evaluate"])
def test_a_run_of_a_comparison_ends_at_once_where_another_one_is_under_way(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that is being read, imported or loaded: its comparison may have been killed meanwhile."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "run"))
    with locked_by_another_process(tmp_path / "run"):
        assert main([command, "--config", str(tmp_path / "not_read.yaml")]) == 2
    under_way = f"ippo: error: run_dir: a run is under way in {tmp_path / 'run'}; wait for it, stop it, or name another"
    assert capsys.readouterr().err == f"{under_way} folder\n"
    assert FOLDER_VARIABLE not in os.environ  # the processes that a run starts are no runs


def comparison(experiment: dict[str, Any], tmp_path: Path, **changes: Any) -> list[str]:
    # a run is a process of its own, which does not see the test's own module of rewards
    grader = {"grader": "ippo_lightning.tasks.grade_arithmetic"}
    change(
        experiment, "model.init_args.reward", {"class_path": "ippo_lightning.rewards.grade_reward", "init_args": grader}
    )
    config = write(experiment, tmp_path)
    methods = {"ppo": {"config": [config]}, "other": {"config": [config]}}
    settings = {"run_dir": str(tmp_path / "compare"), "jobs": 2, "methods": methods, **changes}
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return ["compare", "--config", str(tmp_path / "compare.yaml")]


def history(folder: Path) -> list[dict[str, Any]]:
    path = folder / "history.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@pytest.mark.parametrize(
    # The ordinary suite stops a comparison at a file operation; these load everything for each run.
    "name",
    [pytest.param(name, marks=pytest.mark.slow) for name in ("SIGTERM", "SIGHUP", "SIGINT")],
)
def test_a_signal_to_a_comparison_stops_its_runs_which_write_a_checkpoint(
    name: str, experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(experiment, "loop.max_iterations", 5000)
    change(experiment, "loop.checkpoint_every_n_iterations", 0)
    change(experiment, "loop.evaluate_every_n_iterations", 0)
    words = comparison(experiment, tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "ippo_lightning.cli", *words]
    # as in the background of a script, where Ctrl-C is ignored
    handler = signal.SIG_DFL if name == "SIGINT" else signal.SIG_IGN
    settings: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "env": environment}
    settings["preexec_fn"] = lambda: signal.signal(signal.SIGINT, handler)
    with subprocess.Popen(command, **settings) as process:
        runs = [tmp_path / "compare" / column / "seed_1" for column in ("ppo", "other")]
        deadline = time.monotonic() + PATIENCE
        while not all(history(run) for run in runs) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
        assert main([*words, "--overwrite", "true"]) == 2
        assert "a comparison is under way in" in capsys.readouterr().err
        children = psutil.Process(process.pid).children(recursive=True)
        number = getattr(signal, name)
        process.send_signal(number)
        try:
            said = process.communicate(timeout=PATIENCE)[1]
        except subprocess.TimeoutExpired:  # nothing of it stays behind
            for each in (*children, process):
                each.kill()
            raise
    assert process.returncode == 128 + number
    assert said.count("seed 1: started") == 2, said
    assert "stopping 2 of 2 runs" in said
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    for run in runs:
        (checkpoint,) = (run / "checkpoints").glob("iteration_*.ckpt")
        assert int(checkpoint.stem.rpartition("_")[2]) == len(history(run))


@pytest.mark.slow
def test_a_line_says_when_a_run_starts_and_ends_and_its_threads_are_kept(
    experiment: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change(experiment, "loop.max_iterations", 1)
    words = comparison(experiment, tmp_path, threads=1, jobs=1)
    assert main(words) == 0
    said = capfd.readouterr().err
    for line in ("ppo seed 1: started", "ppo seed 1: done after", "other seed 1: started", "other seed 1: done after"):
        assert line in said
    found = json.loads((tmp_path / "compare" / COMPARISON).read_text(encoding="utf-8"))
    assert found["threads"] == 1
    (file,) = (tmp_path / "compare" / "ppo" / "seed_1" / "checkpoints").glob("iteration_*")
    assert torch.load(file, weights_only=True)["environment"]["threads"] == "1"
    comparison(experiment, tmp_path, jobs=2)  # without a number of threads, which the folder knows
    assert main(words) == 0
    assert json.loads((tmp_path / "compare" / COMPARISON).read_text(encoding="utf-8"))["threads"] == 1


def test_a_second_signal_stops_all_runs_at_once() -> None:
    """Each of these runs ignores the first signal, and ends at the second."""
    code = """
import signal, sys, time
arrived = []
signal.signal(signal.SIGTERM, lambda *_: arrived.append(1) if not arrived else sys.exit(7))
print("ready", flush=True)
time.sleep(60)
"""
    words = [sys.executable, "-c", code]
    runs = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    start = time.monotonic()
    with collected_signals() as arrived:
        os.kill(os.getpid(), signal.SIGTERM)
        _stop(runs, arrived)
    assert arrived == [signal.SIGTERM, signal.SIGTERM]
    assert [run.returncode for run in runs] == [7, 7]
    assert time.monotonic() - start < 30
    for run in runs:
        run.communicate()


@pytest.mark.parametrize(("name", "value"), [("threads", 0), ("jobs", 0)])
def test_a_number_of_threads_or_jobs_below_one_is_refused(
    name: str, value: int, experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(comparison(experiment, tmp_path, **{name: value})) == 2
    assert f"{name}: 0 is out of range; expected an integer >= 1" in capsys.readouterr().err
