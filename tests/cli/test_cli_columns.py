"""A comparison by axes: which columns it has, which files they are made of, and what the report is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from experiment_files import write_tree

from ippo_lightning.cli import experiment_paths
from ippo_lightning.cli.columns import columns_of
from ippo_lightning.cli.command_line import read_command_line
from ippo_lightning.cli.compare import describe, plan_jobs
from ippo_lightning.cli.main import main
from ippo_lightning.cli.override_words import with_texts
from ippo_lightning.cli.parsers import compare_parser
from ippo_lightning.cli.settings import CompareSettings, MethodSettings
from ippo_lightning.errors import UserError


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tree(tmp_path, {"loop": {}, "data": {}, "model": {"init_args": {"policy": {}}}})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment_paths, "packaged_root", lambda: tmp_path / "package")
    return tmp_path


def listing(settings: CompareSettings, root: Path) -> dict[str, Any]:
    describe(settings, columns_of(settings), command="ippo compare", root=root, threads=1)
    return json.loads((root / "comparison.json").read_text(encoding="utf-8"))["methods"]


def test_with_one_task_and_model_a_column_has_the_name_of_its_method(tmp_path: Path) -> None:
    settings = CompareSettings(
        axes={"task": ["sums"], "model": ["tiny"], "method": ["ppo", "ippo"]},
        titles={"ippo": "I-PPO"},
        baseline="ppo",
        featured="ippo",
        seeds=[1, 2],
    )
    assert listing(settings, tmp_path) == {
        "ppo": {"title": "ppo", "seeds": [1, 2], "baseline": None, "featured": False},
        "ippo": {"title": "I-PPO", "seeds": [1, 2], "baseline": "ppo", "featured": True},
    }
    base, task, model, method = (
        f"experiments/{name}.yaml" for name in ("base/ppo", "tasks/sums", "models/tiny", "methods/ippo")
    )
    assert [list(column.config) for column in columns_of(settings)] == [
        [base, task, model],
        [base, task, model, method],
    ]


def test_with_several_tasks_each_column_is_compared_within_its_own(tmp_path: Path) -> None:
    settings = CompareSettings(
        axes={"task": ["sums", "differences"], "model": ["tiny"], "method": ["ppo", "ippo"]}, baseline="ppo"
    )
    listed = listing(settings, tmp_path)
    assert list(listed) == [f"{task}.tiny.{method}" for task in ("sums", "differences") for method in ("ppo", "ippo")]
    assert listed["sums.tiny.ippo"]["baseline"] == "sums.tiny.ppo"
    assert listed["differences.tiny.ippo"]["baseline"] == "differences.tiny.ppo"
    assert listed["differences.tiny.ppo"]["baseline"] is None
    assert listed["sums.tiny.ippo"]["title"] == "sums, tiny: ippo"


def test_a_joined_method_is_compared_with_its_first_part_if_that_is_a_column(tmp_path: Path) -> None:
    methods = ["ppo", "ippo", "ippo+stopping", "stopping+ippo"]
    listed = listing(CompareSettings(axes={"task": ["sums"], "method": methods}, baseline="ppo"), tmp_path)
    assert [listed[name]["baseline"] for name in methods] == [None, "ppo", "ippo", "ppo"]
    # a baseline that is joined itself is compared with nothing
    chosen = CompareSettings(axes={"task": ["sums"], "method": methods}, baseline="ippo+stopping")
    assert listing(chosen, tmp_path)["ippo+stopping"]["baseline"] is None


def test_without_a_baseline_there_are_no_differences(tmp_path: Path) -> None:
    listed = listing(CompareSettings(axes={"task": ["sums"], "method": ["ppo", "ippo"]}), tmp_path)
    assert {column["baseline"] for column in listed.values()} == {None}
    assert {column["featured"] for column in listed.values()} == {False}


def test_columns_of_files_come_first_and_run_once_where_they_only_measure(tmp_path: Path) -> None:
    start = MethodSettings(title="SFT", command="evaluate", config=["experiments/base/ppo.yaml"])
    settings = CompareSettings(
        methods={"sft": start}, axes={"task": ["sums"], "method": ["ppo"]}, baseline="ppo", seeds=[3, 4]
    )
    listed = listing(settings, tmp_path)
    assert list(listed) == ["sft", "ppo"]
    assert listed["sft"] == {"title": "SFT", "seeds": [3], "baseline": "ppo", "featured": False}
    jobs = list(plan_jobs(settings, columns_of(settings)))
    assert [(job.column, job.seed, job.arguments[0]) for job in jobs] == [
        ("sft", 3, "evaluate"),
        ("ppo", 3, "fit"),
        ("ppo", 4, "fit"),
    ]
    assert all(job.arguments[job.arguments.index("--loop.run_dir") + 1] == str(job.folder) for job in jobs)


def test_a_start_is_measured_once_for_each_task_and_model_before_the_methods_that_start_there(tmp_path: Path) -> None:
    settings = CompareSettings(
        axes={"task": ["sums", "differences"], "model": ["tiny"], "method": ["ppo", "ippo"]},
        start="sft",
        titles={"sft": "SFT"},
        baseline="ppo",
        seeds=[3, 4],
    )
    listed = listing(settings, tmp_path)
    assert list(listed)[:3] == ["sums.tiny.sft", "sums.tiny.ppo", "sums.tiny.ippo"]
    entry = {"title": "differences, tiny: SFT", "seeds": [3], "baseline": "differences.tiny.ppo", "featured": False}
    assert listed["differences.tiny.sft"] == entry
    column = columns_of(settings)[0]
    assert list(column.config) == [f"experiments/{name}.yaml" for name in ("base/ppo", "tasks/sums", "models/tiny")]
    words = [job.arguments[0] for job in plan_jobs(settings, columns_of(settings)) if job.column == "sums.tiny.sft"]
    assert words == ["evaluate"]


def test_the_report_is_told_the_axes_of_each_column(tmp_path: Path) -> None:
    given = MethodSettings(config=["experiments/tasks/sums.yaml", "experiments/methods/ippo.yaml"])
    settings = CompareSettings(
        axes={"task": ["sums"], "model": ["tiny"], "method": ["ppo", "ippo"]}, start="sft", methods={"mine": given}
    )
    listing(settings, tmp_path)
    axes = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))["axes"]
    own = {"base": "ppo", "task": "sums", "model": "tiny"}
    assert axes == {
        "mine": {"task": "sums", "method": "ippo"},
        "sft": {**own, "method": "sft"},
        "ppo": {**own, "method": "ppo"},
        "ippo": {**own, "method": "ippo"},
    }


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data.init_args.task.init_args.path": "here"}, ["--data.init_args.task.init_args.path=here"]),
        ({"data": {"init_args.task.init_args.path": "here"}}, ["--data.init_args.task.init_args.path=here"]),
        ({"loop": {"max_iterations": 1, "resume": None}}, ["--loop.max_iterations=1", "--loop.resume=null"]),
        ({"model.init_args.policy.init_args.lora": {"r": 4}}, ['--model.init_args.policy.init_args.lora={"r": 4}']),
    ],
    ids=["a file", "the command line, any depth", "nested", "a value with keys"],
)
def test_overrides_reach_a_run_by_their_full_keys(overrides: dict[str, Any], words: list[str]) -> None:
    settings = CompareSettings(axes={"task": ["sums"]}, overrides=overrides)
    (job,) = plan_jobs(settings, columns_of(settings))
    assert [word for word in job.arguments if "=" in word] == words


def given_words(grid: str, words: Sequence[str]) -> list[str]:
    """Return the overrides that a run of a comparison gets from a file and the words after it."""
    Path("grid.yaml").write_text(f"axes: {{task: [sums]}}\n{grid}", encoding="utf-8")
    line = read_command_line(["compare", "--config", "grid.yaml", *words])
    chosen = compare_parser().parse_args(line.words[1:])
    settings = CompareSettings(axes=chosen.axes, overrides=with_texts(chosen.overrides, line.overrides))
    (job,) = plan_jobs(settings, columns_of(settings))
    return [word.removeprefix("--") for word in job.arguments if "=" in word]


@pytest.mark.parametrize(
    "grid",
    ["overrides: {loop.max_iterations: 4, loop.resume: true}", "overrides: {loop: {max_iterations: 4, resume: true}}"],
    ids=["dotted", "nested"],
)
def test_overrides_of_the_command_line_replace_those_of_a_file_and_leave_the_others(grid: str) -> None:
    words = ["--overrides.loop.max_iterations", "8", "--overrides.loop.run_dir=a", "--overrides.seed_everything", "3"]
    kept = ["loop.max_iterations=8", "loop.resume=true", "loop.run_dir=a", "seed_everything=3"]
    assert given_words(grid, words) == kept
    deep = ["--overrides.data.init_args.task.x", "a", "--overrides.data.init_args.task.y", "null"]
    assert given_words(grid, deep)[2:] == ["data.init_args.task.x=a", "data.init_args.task.y=null"]


@pytest.mark.parametrize("text", ["007", "yes", "1e-4", ".inf", "null", "a: b", "EpisodeLog", "[1, 2]", ""])
def test_a_run_reads_the_text_of_an_override_as_it_was_typed(text: str) -> None:
    assert given_words("overrides: {x: 1}", [f"--overrides.x={text}"]) == [f"x={text}"]


@pytest.mark.parametrize(
    ("grid", "words", "said"),
    [
        ("", ["--overrides.callbacks+=A", "--overrides.callbacks+", "B"], r"overrides\.callbacks\+: given 2 times"),
        ("overrides: {callbacks+: [A]}", ["--overrides.callbacks+=B"], r"overrides\.callbacks\+: also in a file"),
        ("", ["--overrides..a=1"], r"'overrides\.\.a': no key of a run"),
        ("", ["--overrides.a b=1"], r"'overrides\.a b': no key of a run"),
    ],
)
def test_an_override_that_would_lose_another_or_has_no_key_is_refused(grid: str, words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        given_words(grid, words)


def test_of_one_override_the_last_counts_and_a_whole_mapping_comes_before_single_keys() -> None:
    words = ["--overrides.loop.a", "1", "--overrides.loop.a", "2", "--overrides", '{"loop.b": 3}']
    assert given_words("overrides: {loop.c: 4}", words) == ["loop.b=3", "loop.a=2"]


def test_the_command_gives_its_runs_all_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    Path("grid.yaml").write_text("{axes: {task: [sums]}, overrides: {loop.max_iterations: 4}}", encoding="utf-8")
    words = ["compare", "--config", "grid.yaml", "--overrides.loop.max_iterations", "0"]
    others = ["--overrides.loop.evaluate_first", "false", "--overrides.loop.test_at_end", "false"]
    assert main([*words, *others]) == 2, "the first of three keys below loop arrives"
    assert "loop.max_iterations: 0 is out of range" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, *others, "--print_config"])
    printed = capsys.readouterr().out
    assert "  loop.max_iterations: 0\n  loop.evaluate_first: false\n  loop.test_at_end: false\n" in printed


def test_an_override_of_one_method_is_refused_on_the_command_line() -> None:
    with pytest.raises(UserError, match=r"^methods\.a\.overrides\.loop\.x: the command line has no overrides of one"):
        read_command_line(["compare", "--methods.a.overrides.loop.x", "1"])


def test_an_edited_file_makes_another_run() -> None:
    settings = CompareSettings(axes={"task": ["sums"]})
    (before,) = plan_jobs(settings, columns_of(settings))
    Path("experiments/tasks/sums.yaml").write_text("loop: {max_iterations: 3}", encoding="utf-8")
    (after,) = plan_jobs(settings, columns_of(settings))
    assert before.arguments == after.arguments
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "axes, methods"),
        ({"axes": {"tusk": ["sums"]}}, "axes: 'tusk' is unknown"),
        ({"axes": {"task": []}}, "axes.task"),
        ({"axes": {"task": ["sums", "sums"]}}, "axes.task"),
        ({"axes": {"task": ["sum"]}}, "did you mean 'sums'?"),
        ({"axes": {"task": ["sums"], "method": ["ipo"]}}, "did you mean 'ippo'?"),
        ({"axes": {"task": ["sums"]}, "baseline": "pppo"}, "baseline: 'pppo' is not a method"),
        ({"axes": {"task": ["sums"]}, "featured": "magic"}, "featured: 'magic'"),
        ({"axes": {"task": ["sums"]}, "titles": {"magic": "M"}}, "titles: 'magic'"),
        ({"axes": {"task": ["sums"]}, "methods": {"ppo": MethodSettings()}}, "'ppo' is also a column of the axes"),
        ({"axes": {"task": ["sums"]}, "seeds": [1, 1]}, "seeds"),
        ({"axes": {"task": ["sums"], "method": ["ppo"]}, "start": "ppo"}, "start: 'ppo' is also a method of the axes"),
        ({"axes": {"task": ["sums"]}, "start": "ppo"}, "start: 'ppo' is also a method of the axes"),
        ({"methods": {"mine": MethodSettings()}, "start": "sft"}, "start: 'sft' needs axes"),
        ({"axes": {"task": ["sums"]}, "start": "../sft"}, "is not the name of a folder"),
    ],
)
def test_an_error_in_the_axes_is_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        columns_of(CompareSettings(**settings))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_listing_keeps_the_most_runs_that_ever_shared_the_cores(tmp_path: Path) -> None:
    found = []
    for jobs in (1, 3, 2):  # runs that took their time beside two others are not measured again
        settings = CompareSettings(axes={"task": ["sums"], "model": ["tiny"], "method": ["ppo"]}, jobs=jobs)
        listing(settings, tmp_path)
        found.append(json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))["jobs"])
    assert found == [1, 3, 3]


def test_a_comparison_writes_no_keys_and_no_personal_paths(tmp_path: Path) -> None:
    overrides = {"fabric.loggers": [{"init_args": {"api_key": "sk-1234"}}], "x.token": "abcd", "loop.max_iterations": 3}
    given = MethodSettings(config=[str(tmp_path / "experiments/tasks/sums.yaml")], overrides=overrides)
    listing(CompareSettings(methods={"mine": given}), tmp_path)
    written = (tmp_path / "comparison.json").read_text(encoding="utf-8")
    assert not [word for word in ("sk-1234", "abcd", str(tmp_path)) if word in written]
    assert json.loads(written)["config"].count("<hidden>") == 2
    assert '"loop.max_iterations": 3' in json.loads(written)["config"]
