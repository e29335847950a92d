"""Runs that are killed at random moments and go on: parameters, logs and metrics are those of a run left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiment_files import TINY
from run_folders import assert_same_runs

from ippo_lightning.data import arithmetic_tokenizer
from ippo_lightning.policies import CausalLMPolicy

ITERATIONS = 24
REWARD = '''
"""Rewards by length; they fail where the environment variable FAIL_FILE names a file, once."""
import os

def by_length(prompts, responses, examples):
    name = os.environ.get("FAIL_FILE", "")
    if name and os.path.exists(name):
        os.unlink(name)
        raise ConnectionError("the grader is away")
    return [0.1 * len(response) for response in responses]
'''
WAYS = ("kill", "terminate", "interrupt", "requeue", "disk full", "reward raises")
SIGNALS = {
    "kill": signal.SIGKILL,
    "terminate": signal.SIGTERM,
    "interrupt": signal.SIGINT,
    "requeue": signal.SIGUSR1,
}


class Server:
    """Starts `ippo` in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.fail_file = folder / "fail"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
            "FAIL_FILE": str(self.fail_file),
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parents[1] / "support" / "run_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        assert self._answer() == "ready"

    def start(self, arguments: list[str], log: Path, *, largest_file: int | None = None) -> int:
        return int(self._ask({"arguments": arguments, "largest_file": largest_file, "log": str(log)}))

    def wait(self, pid: int) -> int:
        return int(self._ask({"wait": pid}))

    def _ask(self, order: dict[str, Any]) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a reward, and the YAML of an I-PPO run on them."""
    folder = tmp_path_factory.mktemp("interruption")
    CausalLMPolicy(config=dict(TINY), tokenizer=arithmetic_tokenizer(), value="none", reference="none").save_pretrained(
        folder / "model"
    )
    (folder / "interrupted_rewards.py").write_text(REWARD, encoding="utf-8")
    experiment = {
        "seed_everything": 3,
        "loop": {
            "max_iterations": ITERATIONS,
            "evaluate_every_n_iterations": 3,
            "checkpoint_every_n_iterations": 2,
            "keep_last_checkpoints": 2,
            "best_metric": "label/wrong_answer",
            "progress_bar": False,
        },
        "model": {
            "class_path": "ippo_lightning.PPOModule",
            "init_args": {
                "reward": "interrupted_rewards.by_length",
                "grader": "ippo_lightning.tasks.grade_arithmetic",
                "policy": {
                    "class_path": "ippo_lightning.policies.CausalLMPolicy",
                    "init_args": {"pretrained": str(folder / "model")},
                },
                "kl_controller": {
                    "class_path": "ippo_lightning.algorithms.AdaptiveKLController",
                    "init_args": {"coef": 0.1, "target": 0.5, "horizon": 64},
                },
                "sampling": {"num_responses": 2, "max_new_tokens": 8},
                "update": {"minibatch_size": 8, "num_epochs": 2},
                "optimizer": {"learning_rate": 1e-3, "schedule": "cosine", "warmup_iterations": 2},
            },
        },
        "data": {
            "class_path": "ippo_lightning.data.TextDataModule",
            "init_args": {
                "task": {
                    "class_path": "ippo_lightning.tasks.ArithmeticTask",
                    "init_args": {
                        "num_train": 40,
                        "num_validation": 4,
                        "num_test": 4,
                        "num_influence_demonstrations": 8,
                    },
                },
                "batch_size": 8,
            },
        },
        "callbacks": [
            {
                "class_path": "ippo_lightning.callbacks.InfluenceFilter",
                "init_args": {"scoring": {"adam_aware": True, "refresh_every_n_iterations": 3}},
            },
            {"class_path": "ippo_lightning.callbacks.IntrinsicStopping", "init_args": {"threshold": 0.01}},
            {"class_path": "ippo_lightning.callbacks.EpisodeLog"},
        ],
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    started = Server(place)
    yield started
    started.process.kill()
    started.process.wait()


@pytest.fixture(scope="module")
def whole(place: Path, server: Server) -> tuple[Path, float]:
    """An uninterrupted run, and how long it took."""
    run = place / "whole"
    start = time.monotonic()
    assert server.wait(server.start(fit(place, run), place / "whole.log")) == 0, tail(place / "whole.log")
    return run, time.monotonic() - start


def fit(place: Path, run: Path) -> list[str]:
    return ["fit", "--config", str(place / "experiment.yaml"), "--loop.run_dir", str(run)]


def tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:]


def interrupt(server: Server, place: Path, run: Path, *, way: str, chance: random.Random) -> int:
    """Start or go on with a run, and let something befall it at a random moment; return the exit status."""
    log = place / f"{run.name}.log"
    is_begun = any((run / "checkpoints").glob("iteration_*.ckpt"))
    arguments = ["fit", "--resume", str(run)] if is_begun else [*fit(place, run), "--loop.overwrite", "true"]
    largest = None
    if way == "disk full":
        whole_size = max(path.stat().st_size for path in (place / "whole").rglob("*.ckpt"))
        largest = chance.choice([whole_size // 2, 20_000, 8_000])
    pid = server.start(arguments, log, largest_file=largest)
    wait_for_a_moment(run, chance)
    if way == "reward raises":
        server.fail_file.touch()
    elif way in SIGNALS:
        os.kill(pid, SIGNALS[way])  # not yet waited for, so the number is nobody else's, also when it is over
    code = server.wait(pid)
    server.fail_file.unlink(missing_ok=True)
    return code


def wait_for_a_moment(run: Path, chance: random.Random) -> None:
    """Let the run go on by a few iterations and a bit, or, one time in five, not even begin."""
    if chance.random() < 0.2:
        time.sleep(chance.uniform(0, 0.6))
        return
    target = num_lines(run / "history.jsonl") + chance.randint(1, 8)
    deadline = time.monotonic() + 5
    while num_lines(run / "history.jsonl") < target and time.monotonic() < deadline:
        if (run / "results.json").exists():
            return
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def assert_kills_cost_nothing(
    server: Server, place: Path, whole: tuple[Path, float], *, seed: int, num_kills: int
) -> list[str]:
    """Interrupt a run again and again, let it end, and compare; return what befell it."""
    chance = random.Random(seed)
    run = place / f"broken_{seed}"
    log = place / f"{run.name}.log"
    befell: list[str] = []
    ways = [WAYS[(seed + number) % len(WAYS)] for number in range(num_kills)]
    for way in ways:
        code = interrupt(server, place, run, way=way, chance=chance)
        befell.append(f"{way}: {code}")
        allowed = {
            "kill": {0, -9},
            "terminate": {0, 143, -15},  # before the loop or after it nothing catches the signal, and nothing needs to
            "interrupt": {0, 130},
            "requeue": {0, 138, -10},
            "disk full": {0, 1, 2},
            "reward raises": {0, 2},
        }[way]
        assert code in allowed, (befell, tail(log))
    is_begun = any((run / "checkpoints").glob("iteration_*.ckpt"))
    arguments = ["fit", "--resume", str(run)] if is_begun else [*fit(place, run), "--loop.overwrite", "true"]
    assert server.wait(server.start(arguments, log)) == 0, (befell, tail(log))
    assert_same_runs(whole[0], run)
    assert "Traceback" not in log.read_text(encoding="utf-8", errors="replace"), tail(log)
    return befell


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_ten_interruptions_cost_nothing(server: Server, place: Path, whole: tuple[Path, float], seed: int) -> None:
    print(assert_kills_cost_nothing(server, place, whole, seed=seed, num_kills=5), "of", whole[1], "seconds")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_fifty_interruptions_cost_nothing(server: Server, place: Path, whole: tuple[Path, float], seed: int) -> None:
    print(assert_kills_cost_nothing(server, place, whole, seed=seed, num_kills=5))
