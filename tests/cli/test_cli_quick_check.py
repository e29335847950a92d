"""The check before heavy imports: it refuses errors at once, and nothing that the parser accepts."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from experiment_files import change, write

from ippo_lightning.cli.command_line import read_command_line
from ippo_lightning.cli.main import EXIT_USER_ERROR, main
from ippo_lightning.cli.quick_check import check_command
from ippo_lightning.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
# 1 second is the aim, and an idle machine needs 0.3; the limit leaves room for machines that are shared
CPU_SECONDS = 2.5
HEAVY = ("torch", "lightning", "transformers", "peft", "matplotlib")
PROGRAM = f"""
import sys
from ippo_lightning.cli.main import main
code = main(sys.argv[1:])
print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""
# (dotted key, value): what the parser accepts although it looks unusual
UNUSUAL: dict[str, tuple[str, Any]] = {
    "a number as text": ("loop.max_iterations", "2"),
    "a float as text": ("model.init_args.optimizer.learning_rate", "1e-3"),
    "an integer for a float": ("model.init_args.optimizer.learning_rate", 1),
    "a truth value as text": ("loop.test_at_end", "false"),
    "null for a number that may be null": ("callbacks.0.init_args", {"max_weight": None}),
    "null for a section": ("model.init_args.sampling", None),
    "no callbacks": ("callbacks", None),
    "a list of devices": ("fabric.devices", [0]),
    "devices as text": ("fabric.devices", "1"),
    "a precision as number": ("fabric.precision", 32),
    "a callback of another library": ("callbacks.0", {"class_path": "lightning.pytorch.callbacks.Timer"}),
    "a callback by the name that its own library gives it": ("callbacks.0", {"class_path": "Timer"}),
    "a reward of the user": ("model.init_args.reward", "rewards_for_tests.nan"),
    "a short name": ("model.class_path", "PPOModule"),
    "the module that defines a class": ("model.class_path", "ippo_lightning.modules.ppo.PPOModule"),
    "an argument of any kind": ("model.init_args.policy.init_args.config", None),
    "one logger": (
        "fabric.loggers",
        {"class_path": "lightning.fabric.loggers.CSVLogger", "init_args": {"root_dir": "x"}},
    ),
}


def check(words: list[str]) -> None:
    check_command(read_command_line(words))


def run_apart(words: list[str], folder: Path) -> tuple[int, str, float]:
    """Run the command line in a process of its own; return its code, its errors and its seconds of CPU time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C"}
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder, env=environment, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.returncode, done.stderr, seconds


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["--version"],
        ["trian"],
        ["fit"],
        ["fit", "--config", "type.yaml"],
        ["fit", "--config", "range.yaml"],
        ["fit", "--config", "class.yaml"],
        ["fit", "--config", "broken.yaml"],
        ["fit", "--loop.max_iteration", "3"],
        ["fit", "--task", "arithmetic", "--method", "ippo", "--callbacks.init_args.min_keep", "-1"],
        ["fit", "--task", "arithmetic", "--model.init_args.loss", "ClipedLoss"],
        ["fit", "--task", "arithmetic", "--data.init_args.task", "aritmetic"],
        ["fit", "--task", "arithmetic", "--fabric.strategy", "fpsd2"],
        ["evaluate", "--task", "arithmetic", "--split", "tst"],
        ["fit", "--callbacks.help"],
        ["compare", "--config", "comparison.yaml"],
        ["compare", "--config", "column.yaml"],
    ],
    ids=lambda words: " ".join(words) or "nothing",
)
def test_help_and_errors_answer_at_once_and_import_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    contents = {
        "type": "loop: {max_iterations: many}",
        "range": "loop: {max_iterations: 0}",
        "class": "callbacks: [{class_path: ippo_lightning.callbacks.InfluenceFiltre}]",
        "broken": "loop: [1",
        "comparison": "jobs: 0",
        "column": "{axes: {task: [arithmetic], method: [ppo]}, overrides: {loop.max_iteration: 3}}",
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.yaml").write_text(content, encoding="utf-8")
    code, errors, seconds = run_apart(words, tmp_path)
    is_error = words[:1] not in ([], ["--help"], ["--version"]) and "--callbacks.help" not in words
    assert code == (EXIT_USER_ERROR if is_error else 0), errors
    assert errors.splitlines()[-1] == "[]"
    assert errors.count("ippo: error:") == is_error
    assert seconds < CPU_SECONDS


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_the_parser_accepts_passes(name: str, experiment: dict[str, Any], tmp_path: Path) -> None:
    from ippo_lightning.cli.parsers import build_parser

    key, value = UNUSUAL[name]
    change(experiment, key, value)
    line = read_command_line(["fit", "--config", write(experiment, tmp_path)])
    build_parser("fit").parse_args(line.words)  # otherwise this case would prove nothing
    check_command(line)


RUNS = sorted(path for path in (ROOT / "experiments").rglob("*.yaml") if path.parent.name != "grids")


@pytest.mark.parametrize("layers", [1, 2], ids=["alone", "over another"])
@pytest.mark.parametrize("path", RUNS, ids=lambda path: "/".join(path.parts[-2:]))
def test_every_experiment_passes(path: Path, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    line = read_command_line(["fit", *["--config", str(path)] * layers, "--print_config"])
    check_command(line)


def test_the_full_configuration_that_the_parser_prints_passes(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", write(experiment, tmp_path), "--print_config"])
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    check(["fit", "--config", str(tmp_path / "printed.yaml")])


def test_words_of_every_form_pass(experiment: dict[str, Any], tmp_path: Path) -> None:
    from ippo_lightning.cli.parsers import build_parser

    words = [
        "--model.init_args.update.max_grad_norm=0.3",
        "--model.policy.lora.r",
        "3",
        "--callbacks.init_args.power=0.5",
        "--callbacks+=InfluenceFilter",
        "--callbacks+={class_path: ippo_lightning.callbacks.EpisodeLog}",
        "--loop.run_dir",
        "a: b: c",
        "--loop.best_metric",
        "[",
    ]
    line = read_command_line(["fit", "--config", write(experiment, tmp_path), *words])
    check_command(line)
    parsed = build_parser("fit").parse_args(line.words).fit
    assert parsed.model.init_args.policy.init_args.lora.r == 3
    assert [item.class_path.rpartition(".")[2] for item in parsed.callbacks] == ["InfluenceFilter"] * 2 + ["EpisodeLog"]
    assert parsed.loop.run_dir == "a: b: c"


def test_a_value_that_a_later_file_replaces_is_left_to_the_parser(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("loop: {max_iterations: many}", encoding="utf-8")
    (tmp_path / "second.yaml").write_text("loop: {max_iterations: 3}", encoding="utf-8")
    check(["fit", *(f"--config={tmp_path}/{name}.yaml" for name in ("first", "second")), "--print_config"])


def test_another_class_takes_no_arguments_of_the_one_before(experiment: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "data_for_tests.py").touch()
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("data: {class_path: data_for_tests.Module, init_args: {task: gsm8k}}", encoding="utf-8")
    check(["fit", "--config", write(experiment, tmp_path), "--config", str(overlay)])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--callbacks+={class_path: InfluenceFiltre}", "did you mean 'InfluenceFilter'?"),
        ("--callbacks+={class_path: InfluenceFilter, init_args: {powr: 1}}", "did you mean 'power'?"),
        ("--model.class_path=ippo_lightning.PPOModul", "did you mean 'PPOModule'?"),
        ("--data.class_path=ippo_lightning.dta.TextDataModule", "did you mean 'ippo_lightning.data'?"),
        ("--model.init_args.policy.init_args.lora={r: some}", "model.policy.lora.r: expected an int. Got value: some"),
        ("--model.init_args.update={clip_range: 0.2}", "(in UpdateSettings); it is now loss: ClippedLoss with low"),
        ("--data.class_path=ippo_lightning.data.GSM8KDataModule", "it is now TextDataModule with task: gsm8k"),
        ("--data=ArithmeticDataModule", "it is now TextDataModule with task: arithmetic"),
        (
            "--model.init_args.sampling.temperature=0",
            "model.sampling.temperature: 0.0 is out of range; expected a number",
        ),
        ("--loop.max_iterations=0", "loop.max_iterations: 0"),
        ("--fabric.precision=fp7", "Got value: fp7"),
        ("--fabric.accelerator=cpuu", "fabric.accelerator: 'cpuu' is unknown; did you mean 'cpu'?"),
        ("--model.init_args.advantages={class_path: GAE, init_args: {lam: 1}}", "model.advantages: Option 'lam'"),
        ("--model.init_args.loss=ClipedLoss", "model.loss: there is no ClipedLoss; did you mean 'ClippedLoss'?"),
        ("--model.init_args.reward=mine.py:right", "'mine.py:right' is no dotted path; did you mean mine.right?"),
        ("--model.init_args.reward=rewards/mine.py", "expected rewards.mine.FUNCTION"),
        ("--model.init_args.reward=mine", "model.reward: there is no mine; expected the dotted path of a function"),
        ("--callbacks+={class_path: InfluenceFilter, init_args: {rule: rewrd}}", "InfluenceFilter.rule: 'rewrd'"),
        (
            "--callbacks+={class_path: InfluenceFilter, init_args: {rule: {class_path: Random, init_args: "
            "{fraction: 2}}}}",
            "callbacks.rule.fraction: 2.0 is out of range",
        ),
        (
            "--callbacks+={class_path: InfluenceFilter, init_args: {target: ReturnOfBufer}}",
            "callbacks.target: there is no ReturnOfBufer; did you mean 'ReturnOfBuffer'?",
        ),
        (
            "--model.init_args.policy.init_args.lora={dropout: 0.5}",
            "model.policy.lora.dropout: 0.5 has no effect while dropout is off",
        ),
        ("--data.init_args.task={class_path: ArithmeticTask, init_args: {min_terms: 7}}", "data.task.min_terms: 7"),
        ("--model.init_args.sampling={stop_tokens: 3}", "expected a list"),
        ("--data.init_args.task.init_args.unfaithful_kinds={shortcut: lots}", "expected a float. Got value: lots"),
    ],
)
def test_an_error_names_what_was_meant(word: str, said: str, experiment: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        check(["fit", "--config", write(experiment, tmp_path), word])
    assert said in str(error.value)
    assert not str(error.value).startswith("loop.loop")
