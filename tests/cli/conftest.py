"""A tiny saved model and an experiment on it, small enough to run in a second."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from code_traps import nothing_of_the_trap
from experiment_files import TINY

from ippo_lightning.data import arithmetic_tokenizer
from ippo_lightning.policies import CausalLMPolicy

REWARDS = '''
"""Rewards that go wrong, each in its own way; `late` only in its third call."""
calls = 0

def right(prompts, responses, examples):
    return [float(len(response)) for response in responses]

def raises(prompts, responses, examples):
    raise KeyError("no such\\nanswer")

def too_few(prompts, responses, examples):
    return [0.0] * (len(prompts) - 1)

def nan(prompts, responses, examples):
    return [0.0] * (len(prompts) - 1) + [float("nan")]

def words(prompts, responses, examples):
    return ["good"] * len(prompts)

def late(prompts, responses, examples):
    global calls
    calls += 1
    return right(prompts, responses, examples) if calls < 3 else raises(prompts, responses, examples)

late.in_evaluation = False
'''


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    policy = CausalLMPolicy(config=dict(TINY), tokenizer=arithmetic_tokenizer(), value="none", reference="none")
    policy.save_pretrained(folder)
    return folder


@pytest.fixture
def experiment(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A PPO experiment as a dictionary, to be changed and written with `write`."""
    (tmp_path / "rewards_for_tests.py").write_text(REWARDS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "rewards_for_tests", raising=False)
    return {
        "seed_everything": 3,
        "loop": {
            "run_dir": str(tmp_path / "run"),
            "max_iterations": 4,
            "evaluate_every_n_iterations": 2,
            "checkpoint_every_n_iterations": 1,
            "progress_bar": False,
        },
        "model": {
            "class_path": "ippo_lightning.PPOModule",
            "init_args": {
                "reward": "rewards_for_tests.right",
                "grader": "ippo_lightning.tasks.grade_arithmetic",
                "policy": {
                    "class_path": "ippo_lightning.policies.CausalLMPolicy",
                    "init_args": {"pretrained": str(tiny_model)},
                },
                "sampling": {"num_responses": 2, "max_new_tokens": 8},
                "update": {"minibatch_size": 8, "num_epochs": 2},
                "optimizer": {"learning_rate": 1e-3},
            },
        },
        "data": {
            "class_path": "ippo_lightning.data.TextDataModule",
            "init_args": {
                "task": {
                    "class_path": "ippo_lightning.tasks.ArithmeticTask",
                    "init_args": {
                        "num_train": 32,
                        "num_validation": 4,
                        "num_test": 4,
                        "num_influence_demonstrations": 4,
                    },
                },
                "batch_size": 8,
            },
        },
        "callbacks": [{"class_path": "ippo_lightning.callbacks.InfluenceFilter"}],
    }


@pytest.fixture
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails when the trap in the working folder is imported or called, or a process of its kind starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "trap", raising=False)
    with nothing_of_the_trap(tmp_path):
        yield
