"""`start_from: sft` is the SFT run with the same task and models; several models are written with a plus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from experiment_files import write_tree

from ippo_lightning.cli import experiment_paths
from ippo_lightning.cli.axis_values import names_of
from ippo_lightning.cli.columns import columns_of
from ippo_lightning.cli.command_line import read_command_line
from ippo_lightning.cli.compare import plan_jobs
from ippo_lightning.cli.settings import CompareSettings
from ippo_lightning.cli.start_of_run import start_layer
from ippo_lightning.errors import UserError

WHOLE = "model: {init_args: {policy: {init_args: {pretrained: owner/name, start_from: sft}}}}\n"
KEY = "--model.init_args.policy.init_args.start_from"


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with the model `big-2.5b`, the overlays `tiny` and `small`, and a model of the user's own."""
    write_tree(tmp_path, {"loop": {}, "data": {}, "model": {"init_args": {"policy": {}}}})
    models = tmp_path / "experiments/models"
    (models / "big-2.5b.yaml").write_text(WHOLE, encoding="utf-8")
    (models / "small.yaml").write_text("seed_everything: 3\n", encoding="utf-8")
    (tmp_path / "experiments/base/sft.yaml").write_text("seed_everything: 3\n", encoding="utf-8")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/mine.yaml").write_text(WHOLE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment_paths, "packaged_root", lambda: tmp_path / "package")
    return tmp_path


def start_and_folder(*words: str) -> tuple[Any, Any]:
    """What the last layers set: the start of the policy and the folder of the run."""
    layers = read_command_line(["fit", *words]).layers
    starts = [
        layer["model"]["init_args"]["policy"]["init_args"]["start_from"]
        for layer in layers
        if "start_from" in str(layer.get("model", ""))
    ]
    words_of_user = [layer[KEY.removeprefix("--")] for layer in layers if KEY.removeprefix("--") in layer]
    folders = [layer["loop.run_dir"] for layer in layers if "loop.run_dir" in layer]
    return (words_of_user or starts)[-1], folders[-1] if folders else None


@pytest.mark.parametrize(
    ("words", "start", "folder"),
    [
        ("--task sums --model big-2.5b", "runs/sums/big-2.5b/sft", "runs/sums/big-2.5b/ppo"),
        ("--task sums --model big-2.5b --method ippo", "runs/sums/big-2.5b/sft", "runs/sums/big-2.5b/ippo"),
        ("--task sums --model big-2.5b+tiny", "runs/sums/big-2.5b+tiny/sft", "runs/sums/big-2.5b+tiny/ppo"),
        ("--task sums --model tiny --model big-2.5b", "runs/sums/big-2.5b+tiny/sft", "runs/sums/big-2.5b+tiny/ppo"),
        ("--task sums --model own/mine.yaml", "runs/sums/mine/sft", "runs/sums/mine/ppo"),
        ("--base sft --task sums --model big-2.5b", None, "runs/sums/big-2.5b/sft"),
        ("--base ppo --model big-2.5b --method ippo", None, "runs/big-2.5b/ippo"),
        (f"--task sums --model big-2.5b {KEY} runs/other", "runs/other", "runs/sums/big-2.5b/ppo"),
    ],
    ids=["ppo", "method", "overlay", "order", "own model", "sft", "no task", "another run"],
)
def test_the_start_follows_from_the_names(words: str, start: str | None, folder: str) -> None:
    assert start_and_folder(*words.split()) == (start, folder)


@pytest.mark.parametrize("key", ["model.policy.start_from", "model.init_args.policy.start_from"])
def test_the_users_word_counts_in_every_spelling_of_the_parser(key: str) -> None:
    line = read_command_line(["fit", "--task", "sums", "--model", "big-2.5b", f"--{key}", "runs/other"])
    assert {key: "runs/other"} in line.layers
    assert "runs/sums/big-2.5b/sft" not in str(line.layers)


def test_a_start_of_a_file_without_a_name_is_an_error_and_no_other_run() -> None:
    with pytest.raises(UserError, match=r"start_from: sft is the run with the same --task and --model") as error:
        read_command_line(["fit", "--task", "sums", "--config", "own/mine.yaml"])
    assert "\n" not in str(error.value)
    read_command_line(["fit", "--task", "sums", "--config", "own/mine.yaml", KEY, "runs/other"])
    assert start_and_folder("--base", "sft", "--config", "own/mine.yaml")[0] is None


def test_without_the_word_nothing_is_added() -> None:
    assert start_layer([{"model": {"init_args": {}}}, {"loop.run_dir": "x"}], [], unnamed=[]) is None


def test_a_comparison_starts_each_column_from_the_run_of_its_own_task_and_model() -> None:
    axes = {"task": ["sums", "differences"], "model": ["tiny+big-2.5b"], "method": ["ppo", "ippo"]}
    settings = CompareSettings(axes=axes, baseline="ppo")
    jobs = {job.column: job for job in plan_jobs(settings, columns_of(settings))}
    assert list(jobs) == [f"{task}.tiny+big-2.5b.{method}" for task in axes["task"] for method in axes["method"]]
    for name, job in jobs.items():
        start, _ = start_and_folder(*job.arguments[1:])
        assert start == f"runs/{name.split('.')[0]}/big-2.5b+tiny/sft"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--model tiny+tiny", "model: 'tiny' is given twice; expected each name once"),
        ("--model tiny --model experiments/models/tiny.yaml", "model: 'tiny' is given twice"),
        ("--task sums --method ippo+ippo", "method: 'ippo' is given twice"),
        ("--method ippo --method stopping --method ippo", "method: 'ippo' is given twice"),
        ("--task sums --task sums", "task: 'sums' is given twice"),
    ],
)
def test_a_name_that_is_given_twice_is_refused(words: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        read_command_line(["fit", *words.split()])


def test_a_column_of_a_comparison_names_each_file_once() -> None:
    settings = CompareSettings(axes={"task": ["sums"], "model": ["big-2.5b+tiny+tiny"], "method": ["ppo"]})
    with pytest.raises(UserError, match="model: 'tiny' is given twice"):
        columns_of(settings)


@pytest.mark.parametrize(
    ("first", "second", "is_free"),
    [
        ("a: {b: 1}", "a: {c: 2}", True),
        ("a: {b: 1}", "a: {b: 1}", True),
        ("a: {b: 1}", "a: {b: 2}", False),
        ("a: {b: 1}", "a.b: 2", False),
        ("callbacks+: [X]", "callbacks+: [Y]", False),
        ("callbacks+: [X]", "callbacks: [Y]", False),
    ],
)
def test_overlays_keep_their_order_where_it_matters(first: str, second: str, is_free: bool) -> None:
    for name, content in (("over", first), ("after", second)):
        Path("experiments/models", f"{name}.yaml").write_text(content + "\n", encoding="utf-8")
    orders = [
        [path.stem for path in read_command_line(["fit", "--task", "sums", "--model", words]).files[2:]]
        for words in ("big-2.5b+over+after", "after+over+big-2.5b")
    ]
    given = [["big-2.5b", "over", "after"], ["big-2.5b", "after", "over"]]
    assert orders == ([given[1]] * 2 if is_free else given)


def test_only_names_are_split() -> None:
    Path("experiments/models/a+b.yaml").touch()
    assert names_of("model", "a+b") == ["a+b"]
    assert names_of("model", "tiny+small") == ["tiny", "small"]
    assert names_of("model", "own+mine/x.yaml") == ["own+mine/x.yaml"]
    assert names_of("task", "sums+differences") == ["sums+differences"]
    assert names_of("method", "ippo+stopping") == ["ippo", "stopping"]


def test_a_wrong_name_among_several_is_named() -> None:
    with pytest.raises(UserError, match="model: 'tinny' is not a file in experiments/models; did you mean 'tiny'"):
        read_command_line(["fit", "--task", "sums", "--model", "big-2.5b+tinny"])
