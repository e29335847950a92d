"""Every error of a user is one clear line and exit code 2, and nothing that was computed before is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from experiment_files import change, write

from ippo_lightning.cli.main import EXIT_USER_ERROR, main

POLICY = "model.init_args.policy.init_args"

# what is changed in a good experiment: (dotted key, value), and the words that must be in the line
USER_ERRORS: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "unknown key": ("bogus", 1, ("bogus",)),
    "unknown key of a section": ("loop.bogus", 1, ("loop", "bogus")),
    "unknown argument of the model": ("model.init_args.bogus", 1, ("model", "bogus", "PPOModule")),
    "unknown argument of the policy": (f"{POLICY}.bogus", 1, ("policy", "bogus", "CausalLMPolicy")),
    "wrong type": ("loop.max_iterations", "many", ("loop.max_iterations", "int", "many")),
    "number out of range": (
        "model.init_args.update",
        {"max_grad_norm": -1},
        ("model.update.max_grad_norm", "-1", "> 0"),
    ),
    "no iterations": ("loop.max_iterations", 0, ("loop.max_iterations", "0", ">= 1")),
    "unknown class": ("model.class_path", "nowhere.Module", ("model", "nowhere")),
    "unknown reward": ("model.init_args.reward", "nowhere.reward", ("reward", "nowhere")),
    "reward that raises": ("model.init_args.reward", "rewards_for_tests.raises", ("reward", "raises", "KeyError")),
    "reward of the wrong number": ("model.init_args.reward", "rewards_for_tests.too_few", ("reward", "7", "8")),
    "reward that is NaN": ("model.init_args.reward", "rewards_for_tests.nan", ("reward", "nan", "episode 15")),
    "reward that is no number": ("model.init_args.reward", "rewards_for_tests.words", ("reward", "words")),
    "no training data": ("data.init_args.task.init_args.num_train", 0, ("data", "training", "0")),
    "no validation data": ("data.init_args.task.init_args.num_validation", 0, ("data", "validation", "0")),
    "more problems than there are": ("data.init_args.task.init_args.max_number", 1, ("task", "problems")),
    "unfaithful fraction above one": (
        "data.init_args.task.init_args.unfaithful_fraction",
        1.5,
        ("unfaithful_fraction", "1.5"),
    ),
    "prompt longer than the context": ("model.init_args.sampling.max_new_tokens", 62, ("token", "62")),
    "response longer than the context": ("model.init_args.sampling.max_new_tokens", 640, ("640",)),
    "temperature zero": ("model.init_args.sampling.temperature", 0.0, ("temperature", "0")),
    "model folder missing": (f"{POLICY}.pretrained", "/no/such/model", ("/no/such/model",)),
    "neither model nor config": (f"{POLICY}.pretrained", None, ("policy",)),
    "4-bit without LoRA": (f"{POLICY}.quantization", "nf4", ("quantization", "lora")),
    "adapter off without adapter": (f"{POLICY}.reference", "adapter_off", ("reference", "adapter_off", "lora")),
    "unknown rule": ("callbacks.0.init_args", {"rule": "magic"}, ("rule", "magic", "influence")),
    "negative power": ("callbacks.0.init_args", {"power": -1.0}, ("power", "-1")),
    "accelerator that is not there": ("fabric.accelerator", "warp", ("accelerator", "warp")),
    "no number of devices": ("fabric.devices", "x", ("devices",)),
    "unknown strategy": ("fabric.strategy", "magic", ("strategy", "magic")),
    "unknown precision": ("fabric.precision", "fp7", ("precision", "bf16-mixed", "Got value: fp7")),
    "unknown logger": ("fabric.loggers", {"class_path": "nowhere.Logger"}, ("loggers", "nowhere")),
    "logger whose library is not there": (
        "fabric.loggers",
        [
            {"class_path": "lightning.fabric.loggers.CSVLogger", "init_args": {"root_dir": "/tmp"}},
            {"class_path": "lightning.pytorch.loggers.CometLogger"},
        ],
        ("fabric.loggers", "CometLogger", "comet"),
    ),
    "seed that is no number": ("seed_everything", "dice", ("seed_everything", "int", "dice")),
    "a key with a slip": ("loop.max_iteration", 3, ("max_iteration", "did you mean", "'loop.max_iterations'")),
    "an argument with a slip": (
        "model.init_args.sampling.temprature",
        1.0,
        ("sampling", "temprature", "did you mean 'temperature'?"),
    ),
    "a callback's argument with a slip": (
        "callbacks.0.init_args",
        {"powr": 1.0},
        ("callbacks", "powr", "did you mean 'power'?"),
    ),
    "a nested argument with a slip": (
        "callbacks.0.init_args",
        {"scoring": {"metod": "hooks"}},
        ("scoring", "metod", "did you mean 'method'?"),
    ),
    "a key of an earlier version": (
        "model.init_args.ppo",
        {"num_epochs": 2},
        ("ppo", "use update, advantages, loss and value_loss instead"),
    ),
    "a section with a slip": ("looop.max_iterations", 3, ("looop", "did you mean 'loop.max_iterations'?")),
    "no checkpoint to keep": ("loop.keep_last_checkpoints", 0, ("keep_last_checkpoints", "0", ">= 1")),
    "a best metric that nobody measures": ("loop.best_metric", "accuracy", ("best_metric", "accuracy", "exact_match")),
    "neither best nor worst": ("loop.best_mode", "median", ("best_mode", "median")),
    "learning rate below zero": ("model.init_args.optimizer.learning_rate", -1.0, ("learning_rate", "-1", "> 0")),
    "unknown schedule": ("model.init_args.optimizer.schedule", "stairs", ("schedule", "stairs", "cosine")),
    "unknown reduction": ("model.init_args.update.loss_reduction", "sum", ("loss_reduction", "sum", "token_mean")),
    "discount above one": (
        "model.init_args.advantages",
        {"class_path": "GAE", "init_args": {"gamma": 1.5}},
        ("gamma", "1.5", "<= 1"),
    ),
    "unknown rule for NaN": ("model.init_args.update.on_nonfinite", "ignore", ("on_nonfinite", "ignore", "skip")),
    "top-p of zero": ("model.init_args.sampling.top_p", 0.0, ("top_p", "0")),
    "no responses": ("model.init_args.sampling.num_responses", 0, ("num_responses", "0")),
    "unknown estimator": ("model.init_args.kl_estimator", "k4", ("kl_estimator", "k4")),
    "unknown grader": ("model.init_args.grader", "ippo_lightning.tasks.judge_all", ("grader", "judge_all")),
    "unknown critic": (f"{POLICY}.value", "oracle", ("value", "oracle")),
    "adapter of rank zero": (f"{POLICY}.lora", {"r": 0}, ("r", "0")),
    "batch of nothing": ("data.init_args.batch_size", 0, ("batch_size", "0")),
    "cap of a weight below one": ("callbacks.0.init_args", {"max_weight": 0.5}, ("max_weight", "0.5", ">= 1")),
    "unknown way of scoring": (
        "callbacks.0.init_args",
        {"scoring": {"method": "magic"}},
        ("method", "magic", "finite_difference"),
    ),
    "unknown choice for an empty update": (
        "callbacks.0.init_args",
        {"on_empty": "panic"},
        ("on_empty", "panic", "keep_all"),
    ),
    "stopping threshold above one": (
        "callbacks.0",
        {"class_path": "ippo_lightning.callbacks.IntrinsicStopping", "init_args": {"threshold": 2.0}},
        ("threshold", "2.0"),
    ),
    "table of no rows": (
        "callbacks.0",
        {"class_path": "ippo_lightning.callbacks.CompletionsTable", "init_args": {"num_rows": 0}},
        ("num_rows", "0", ">= 1"),
    ),
}


def error_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command line; return its one line."""
    code = main(arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ippo:")]
    assert code == EXIT_USER_ERROR
    assert len(lines) == 1, lines
    assert len(lines[0]) < 440
    return lines[0]


@pytest.mark.parametrize("name", USER_ERRORS)
def test_an_error_in_the_yaml_is_one_line(
    name: str, experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, value, words = USER_ERRORS[name]
    change(experiment, key, value)
    line = error_line(["fit", "--config", write(experiment, tmp_path)], capsys)
    assert all(word in line for word in words), line
    assert "Traceback" not in line


def test_the_traceback_of_a_reward_is_printed_on_demand(
    experiment: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IPPO_TRACEBACK", "1")
    change(experiment, "model.init_args.reward", "rewards_for_tests.raises")
    assert main(["fit", "--config", write(experiment, tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert "in raises" in printed
    assert printed.splitlines()[-1].startswith("ippo: error:")


def test_a_missing_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "/no/such.yaml" in error_line(["fit", "--config", "/no/such.yaml"], capsys)


def test_malformed_yaml_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("loop: [1", encoding="utf-8")
    assert "line 1" in error_line(["fit", "--config", str(path)], capsys)


def test_an_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "train" in error_line(["train"], capsys)


def test_a_command_without_a_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "model" in error_line(["fit"], capsys)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("pad_token", "<pat>", ("policy.pad_token", "'<pat>'", "'<pad>'")),
        ("chat_template", True, ("policy.chat_template", "no template")),
        ("system_prompt", "Be short.", ("policy.system_prompt", "chat_template: true")),
        ("special_tokens", "drop", ("special_tokens", "strip")),
        ("dtype", "bfloat16", ("policy.dtype", "float32", "bf16-mixed")),
    ],
)
def test_a_mistake_about_text_and_weights_is_one_line(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, value: Any, words: Any
) -> None:
    change(experiment, f"{POLICY}.{field}", value)
    line = error_line(["fit", "--config", write(experiment, tmp_path)], capsys)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"question": "1+1?", "answer": "2', ("train.jsonl", "2")),
        ('{"question": "1+1?"}', ("train.jsonl", "answer")),
        ('{"question": "1+1?", "answer": "no mark"}', ("train.jsonl", "####")),
    ],
    ids=["cut off", "key missing", "no final answer"],
)
def test_a_malformed_line_of_data_is_named(
    line: str, words: tuple[str, ...], experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = json.dumps({"question": "What is 1+1?", "answer": "<<1+1=2>>\n#### 2"})
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(f"{good}\n{line}\n", encoding="utf-8")
    experiment["data"] = {
        "class_path": "ippo_lightning.data.TextDataModule",
        "init_args": {"task": {"class_path": "ippo_lightning.tasks.GSM8KTask", "init_args": {"path": str(tmp_path)}}},
    }
    line = error_line(["fit", "--config", write(experiment, tmp_path)], capsys)
    assert all(word in line for word in words), line


def test_data_that_are_not_there_are_named(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment["data"] = {
        "class_path": "ippo_lightning.data.TextDataModule",
        "init_args": {
            "task": {"class_path": "ippo_lightning.tasks.GSM8KTask", "init_args": {"path": str(tmp_path / "nothing")}}
        },
    }
    assert "nothing" in error_line(["fit", "--config", write(experiment, tmp_path)], capsys)


def test_an_occupied_folder_is_refused_and_left_alone(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(experiment, tmp_path)
    assert main(["fit", "--config", config]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    capsys.readouterr()
    line = error_line(["fit", "--config", config], capsys)
    assert "overwrite" in line
    assert "resume" in line
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_run_that_had_started_keeps_its_last_checkpoint(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(experiment, "model.init_args.reward", "rewards_for_tests.late")
    assert "late" in error_line(["fit", "--config", write(experiment, tmp_path)], capsys)
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["progress"]["iteration"] == 2
    assert len((tmp_path / "run" / "history.jsonl").read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize(
    ("content", "word"), [(None, "does not exist"), (b"not a checkpoint", "cannot be read")], ids=["missing", "corrupt"]
)
def test_a_bad_checkpoint_is_one_line(
    content: bytes | None,
    word: str,
    experiment: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "some.ckpt"
    if content is not None:
        path.write_bytes(content)
    line = error_line(["evaluate", "--config", write(experiment, tmp_path), "--checkpoint", str(path)], capsys)
    assert word in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "--resume", "/no/such"], ("resume", "/no/such", "config.yaml")),
        (["export", "/no/such"], ("run", "/no/such", "config.yaml")),
        (["report", "/no/such"], ("/no/such", "history.jsonl")),
        (["report"], ("runs",)),
        (["fit", "--task", "arithmetic", "--model", "qqq"], ("model", "'qqq' is no class and no file")),
        (
            ["fit", "--task", "arithmetic", "--model", "Qqq"],
            ("'Qqq' is no class", "expected one of arithmetic_llama, "),
        ),
        (["fit", "--loop.max_iteration", "3"], ("max_iteration", "did you mean")),
        (
            ["fit", "--task", "arithmetic", "--model.reward", "rewards_here.rigth"],
            ("did you mean 'rewards_here.right'?",),
        ),
        (["fit", "--task", "arithmetic", "--model.reward", "reward_here.right"], ("did you mean 'rewards_here'",)),
        (["fit", "--task", "arithmetic", "--model.reward", "rewards_here.py:right"], ("mean rewards_here.right?",)),
    ],
    ids=[
        *("resume", "export", "report", "report nothing", "no model", "no model either", "slip on the command line"),
        *("slip in a function", "slip in a module", "a function as of a file"),
    ],
)
def test_an_error_on_the_command_line_is_one_line(
    words: list[str],
    said: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "rewards_here.py").write_text("def right(prompts, responses, examples):\n    return [0.0]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    line = error_line(words, capsys)
    assert all(word in line for word in said), line


def test_an_abbreviated_key_is_no_key(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_line(["fit", "--config", write(experiment, tmp_path), "--loop.max_it", "1"], capsys)
    assert "max_it" in line


def test_two_runs_of_one_name_cannot_stand_side_by_side(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", write(experiment, tmp_path)]) == 0
    capsys.readouterr()
    run = str(tmp_path / "run")
    assert "same name" in error_line(["report", run, run], capsys)
    assert "adapter is not possible" in error_line(["export", run, "--form", "adapter"], capsys)
    assert "knows no best evaluation" in error_line(["export", run, "--checkpoint", "best"], capsys)
