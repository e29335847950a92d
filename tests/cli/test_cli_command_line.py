"""Short forms of the command line: axes become files, files become text, and the run's folder is derived."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from experiment_files import write, write_tree

from ippo_lightning.cli import experiment_paths
from ippo_lightning.cli.command_line import read_command_line
from ippo_lightning.cli.main import check_command, main
from ippo_lightning.cli.parsers import build_parser
from ippo_lightning.cli.yaml_text import dump_yaml, load_yaml
from ippo_lightning.errors import UserError


@pytest.fixture
def tree(experiment: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a small tree of experiments, and a package without any."""
    del experiment["loop"]["run_dir"]
    write_tree(tmp_path, experiment)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment_paths, "packaged_root", lambda: tmp_path / "package")
    return tmp_path


def parsed(*words: str) -> Any:
    line = read_command_line(["fit", *words])
    check_command(line)
    return build_parser("fit").parse_args(line.words).fit


def files(*words: str) -> list[str]:
    return [f"{path.parent.name}/{path.stem}" for path in read_command_line(["fit", *words]).files]


def callbacks(settings: Any) -> list[str]:
    return [item.class_path.rpartition(".")[2] for item in settings.callbacks]


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("words", "expected", "run_dir"),
    [
        ("--task sums", ["base/ppo", "tasks/sums"], "runs/sums/ppo"),
        ("--task sums --method ippo", ["base/ppo", "tasks/sums", "methods/ippo"], "runs/sums/ippo"),
        ("--method=ippo --task=sums", ["base/ppo", "tasks/sums", "methods/ippo"], "runs/sums/ippo"),
        (
            "--method ippo --model tiny --task sums --base ppo",
            ["base/ppo", "tasks/sums", "models/tiny", "methods/ippo"],
            "runs/sums/tiny/ippo",
        ),
        (
            "--task sums --method ippo --method stopping",
            ["base/ppo", "tasks/sums", "methods/ippo", "methods/stopping"],
            "runs/sums/ippo+stopping",
        ),
        (
            "--config experiments/base/ppo.yaml --config experiments/tasks/sums.yaml",
            ["base/ppo", "tasks/sums"],
            "runs/sums/ppo",
        ),
        ("--config experiments/base/ppo.yaml", ["base/ppo"], None),
    ],
    ids=["task", "method", "any order", "all axes", "two methods", "paths", "base alone"],
)
def test_axes_are_files_in_a_fixed_order(words: str, expected: list[str], run_dir: str | None) -> None:
    assert files(*words.split()) == expected
    line = read_command_line(["fit", *words.split()])
    assert next((layer["loop.run_dir"] for layer in line.layers if "loop.run_dir" in layer), None) == run_dir


@pytest.mark.usefixtures("tree")
def test_a_method_overlay_leaves_the_callbacks_of_the_user() -> None:
    Path("mine.yaml").write_text("callbacks+: [{class_path: CompletionsTable}]", encoding="utf-8")
    both = parsed("--task", "sums", "--config", "mine.yaml", "--method", "ippo")
    assert callbacks(both) == ["EpisodeLog", "CompletionsTable", "InfluenceFilter"]
    assert both.callbacks[2].init_args.power == 0.5


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("words", "run_dir"),
    [
        ("--task own/alpha.yaml --method ippo", "runs/alpha/ippo"),
        ("--task own/beta.yaml --method ippo", "runs/beta/ippo"),
        ("--task sums --model own/alpha.yaml", "runs/sums/alpha/ppo"),
        ("--task sums --method own/alpha.yaml", "runs/sums/alpha"),
        ("--task sums --base own/alpha.yaml --method ippo", "runs/sums/alpha+ippo"),
    ],
)
def test_runs_of_own_files_have_folders_of_their_own(words: str, run_dir: str) -> None:
    Path("own").mkdir()
    for name in ("alpha", "beta"):
        Path(f"own/{name}.yaml").write_text("seed_everything: 3\n", encoding="utf-8")
    layers = read_command_line(["fit", *words.split()]).layers
    assert layers[-1] == {"loop.run_dir": run_dir}


@pytest.mark.parametrize("form", ["--resume {} {}", "{1} --resume={0}"])
@pytest.mark.parametrize("axis", ["--base ppo", "--task sums", "--method=random", "--model tiny", "--model my.yaml"])
def test_a_resumed_run_keeps_its_files(form: str, axis: str, tree: Path) -> None:
    (tree / "config.yaml").write_text("seed_everything: 3\n", encoding="utf-8")
    name = axis.replace("=", " ").split()[0]
    with pytest.raises(UserError, match=f"resume: {name} cannot be combined with --resume"):
        read_command_line(["fit", *form.format(tree, axis).split()])
    with pytest.raises(UserError, match=f"resume: {tree} has no checkpoint; .*--loop.run_dir {tree} --loop.overwrite"):
        read_command_line(["fit", "--resume", str(tree)])
    (tree / "checkpoints").mkdir()
    (tree / "checkpoints" / "last.ckpt").touch()
    assert read_command_line(["fit", "--resume", str(tree), "--model", "PPOModule"]).layers[-1]["model"]


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize("keys_come", ["before", "between", "after"])
def test_a_key_overrides_any_file_wherever_it_stands(keys_come: str) -> None:
    Path("a.yaml").write_text("loop: {run_dir: file, max_iterations: 7}\ncallbacks: []\n", encoding="utf-8")
    Path("b.yaml").write_text("loop: {max_iterations: 8, progress_bar: false}\n", encoding="utf-8")
    keys = ["--loop.run_dir=key", "--loop.max_iterations", "1", "--callbacks+", "CompletionsTable"]
    first, second = ["--task", "sums", "--config", "a.yaml"], ["--method", "ippo", "--config", "b.yaml"]
    words = {
        "before": [*keys, *first, *second],
        "between": [*first, *keys, *second],
        "after": [*first, *second, *keys],
    }[keys_come]
    settings = parsed(*words)
    assert (settings.loop.run_dir, settings.loop.max_iterations, settings.loop.progress_bar) == ("key", 1, False)
    # the method applies after the file that empties the list, and the key after both
    assert callbacks(settings) == ["InfluenceFilter", "CompletionsTable"]


@pytest.mark.usefixtures("tree")
def test_what_stands_later_wins_and_a_named_folder_is_kept() -> None:
    Path("mine.yaml").write_text("loop: {run_dir: mine, max_iterations: 7}", encoding="utf-8")
    settings = parsed("--task", "sums", "--config", "mine.yaml")
    assert (settings.loop.run_dir, settings.loop.max_iterations) == ("mine", 7)
    assert parsed("--task", "sums", "--loop.run_dir", "here").loop.run_dir == "here"


@pytest.mark.parametrize("form", ["--base sft --task sums", "--config experiments/base/sft.yaml --task sums"])
def test_a_task_may_have_a_file_for_one_base(tree: Path, form: str) -> None:
    for name in ("base/sft", "tasks/sums/sft"):
        (tree / "experiments" / name).parent.mkdir(exist_ok=True)
        (tree / "experiments" / f"{name}.yaml").write_text("loop: {max_iterations: 7}", encoding="utf-8")
    line = read_command_line(["fit", *form.split()])
    used = [path.relative_to("experiments").as_posix() for path in line.files]
    assert sorted(used) == ["base/sft.yaml", "tasks/sums/sft.yaml"]
    assert line.layers[-1] == {"loop.run_dir": "runs/sums/sft"}
    assert files("--task", "sums") == ["base/ppo", "tasks/sums"]


@pytest.mark.usefixtures("tree")
def test_model_names_a_file_or_a_class() -> None:
    assert parsed("--task", "sums", "--model", "tiny").model.init_args.policy.init_args.lora.r == 2
    assert files("--task", "sums", "--model", "PPOModule") == ["base/ppo", "tasks/sums"]


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--task sum", "task: 'sum' is not a file in experiments/tasks; did you mean 'sums'?"),
        ("--task sums --method magic", "expected one of ippo, stopping"),
        ("--task", "task: no value given; expected --task NAME, one of differences, sums"),
        ("--task --method ippo", "task: no value given"),
        ("--task sums --method=", "method: no value given; expected --method NAME, one of ippo, stopping"),
        ("--model", "model: no value given"),
        ("--resume", "resume: no value given; expected --resume DIR, the folder of a run"),
        ("--resume --loop.max_iterations 3", "resume: no value given"),
        ("--resume=", "resume: no value given"),
        (
            "--task sums --model tinny",
            "model: 'tinny' is neither a file in experiments/models nor a class; did you mean 'tiny'?",
        ),
        ("--config experiments/tasks/none.yaml", "experiments/tasks/none.yaml is not a file"),
    ],
)
def test_an_unknown_name_is_an_error(words: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        read_command_line(["fit", *words.split()])
    assert said in str(error.value)


def test_the_package_is_looked_up_where_the_working_directory_has_no_file(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "experiments").rename(tree / "package")
    (tree / "package" / "weights").mkdir()
    (tree / "package" / "tasks" / "other.yaml").write_text("model: {init_args: {policy: experiments/weights}}")
    monkeypatch.chdir(tree / "package" / "weights")
    assert files("--task", "sums") == ["base/ppo", "tasks/sums"]
    line = read_command_line(["fit", "--config", "experiments/tasks/other.yaml"])
    assert line.layers[0] == {"model": {"init_args": {"policy": str(tree / "package" / "weights")}}}


@pytest.mark.usefixtures("tree")
def test_short_forms_run_and_can_be_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--task", "sums", "--method", "ippo", "--loop.max_iterations", "1"]) == 0
    assert Path("runs/sums/ippo/results.json").is_file()
    assert main(["evaluate", "--task", "sums", "--split", "validation"]) == 0
    assert "exact_match" in capsys.readouterr().out


def test_short_names_work_everywhere(experiment: dict[str, Any], tmp_path: Path) -> None:
    arguments = experiment["model"]["init_args"]
    experiment["model"]["class_path"] = "PPOModule"
    arguments["policy"] = {
        "class_path": "CausalLMPolicy",
        "init_args": {"config": {"model_type": "llama"}, "tokenizer": {"class_path": "arithmetic_tokenizer"}},
    }
    arguments.update(
        grader="grade_arithmetic",
        reward={"class_path": "grade_reward", "init_args": {"grader": "grade_arithmetic"}},
        advantages={"class_path": "GAE", "init_args": {"gamma": 0.9}},
        kl_controller={"class_path": "FixedKLController", "init_args": {"coef": 0.1}},
    )
    experiment["data"] = {"class_path": "TextDataModule", "init_args": {"task": {"class_path": "ArithmeticTask"}}}
    config = write(experiment, tmp_path)
    words = ["--callbacks+=IntrinsicStopping", "--callbacks+=[{class_path: InfluenceFilter}]"]
    settings = parsed("--config", config, *words, "--model.init_args.grader", "grade_gsm8k")
    assert settings.model.class_path.startswith("ippo_lightning.")
    assert settings.model.init_args.reward.class_path == "ippo_lightning.rewards.grade_reward"
    assert settings.data.init_args.task.class_path.startswith("ippo_lightning.tasks.")
    assert settings.model.init_args.advantages.init_args.gamma == 0.9
    assert settings.model.init_args.grader.__name__ == "grade_gsm8k"
    assert settings.model.init_args.kl_controller.init_args.coef == 0.1
    assert callbacks(settings) == ["InfluenceFilter", "IntrinsicStopping", "InfluenceFilter"]


def test_a_file_is_utf_8_and_a_text_that_looks_like_a_number_stays_text(tmp_path: Path) -> None:
    content = {"text": "1e-3", "number": 1e-3, "words": "größer", "keys": {2: None, True: [float("inf")]}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"loop": content}, allow_unicode=True), encoding="utf-8")
    line = read_command_line(["fit", "--config", str(tmp_path / "a.yaml")])
    assert line.layers[0]["loop"]["words"] == "größer"
    assert load_yaml(dump_yaml({"loop": content}), origin="") == {"loop": content}


def test_a_file_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("loop: {run_dir: größer}".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8"):
        read_command_line(["fit", "--config", str(tmp_path / "a.yaml")])


@pytest.mark.parametrize(("content", "said"), [("- 1", "no keys and values"), ("loop: [1", "from line 1")])
def test_a_file_that_is_no_configuration_is_an_error(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        read_command_line(["fit", "--config", str(tmp_path / "a.yaml")])


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("word", "value", "found"),
    [
        ("policy.init_args.system_prompt", "null", None),
        ("policy.init_args.lora", "null", None),
        ("policy.init_args.lora.adapter_path", "null", None),
        ("policy.init_args.lora", '{"r": 4, "adapter_path": null}', None),
        ("policy.init_args.system_prompt", "~", None),
    ],
)
def test_null_on_the_command_line_is_not_the_text_none(word: str, value: str, found: Any) -> None:
    chosen = parsed("--task", "sums", f"--model.init_args.{word}", value).model.init_args
    for key in word.split("."):
        chosen = chosen[key]
    assert getattr(chosen, "adapter_path", chosen) is found


def test_null_where_the_command_line_cannot_hand_it_on_is_refused() -> None:
    with pytest.raises(UserError, match=r"scoring\.include: null is not read correctly .* write this key in a YAML"):
        read_command_line(["fit", "--callbacks.init_args.scoring.include", "null"])
    line = read_command_line(["fit", "--callbacks.init_args.threshold", "null"])
    assert line.words == ["fit", "--callbacks.init_args.threshold=null"]
