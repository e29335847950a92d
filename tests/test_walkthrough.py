"""The walkthrough of the docs works as it is written, word for word: on rows of its kind, and with a tiny model."""

from __future__ import annotations

import json
import random
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from experiment_files import TINY
from small_tokenizers import chat_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from ippo_lightning.cli.experiment_paths import packaged_root
from ippo_lightning.cli.main import main

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "walkthrough.md"
TEXT = PAGE.read_text(encoding="utf-8")
FILES = re.findall(
    r"as\s+`([\w/]+\.(?:yaml|py))`(?:(?!```).)*?:\n\n```\w+\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE
)
COMMANDS = re.findall(r"^ippo .+$", TEXT, flags=re.MULTILINE)
MODEL = "smollm2-135m"
SMALL = {
    "loop": {"max_iterations": 2, "evaluate_every_n_iterations": 1, "progress_bar": False},
    "model": {"init_args": {"evaluation": {"num_responses": 2, "max_new_tokens": 4}}},
    "data": {
        "init_args": {
            "batch_size": 4,
            "task": {"init_args": {"num_validation": 6, "num_test": 6, "num_influence_demonstrations": 6}},
        }
    },
}
SHORT = ["--model.init_args.sampling.max_new_tokens=6", "--model.init_args.sampling.num_responses=2"]


def rows() -> list[dict[str, object]]:
    """Rows with the columns of the page."""
    draw = random.Random(0)
    pairs = [(draw.randint(2, 99), draw.randint(2, 9)) for _ in range(80)]
    return [
        {"task": f"{a} boxes of {b}?", "steps": f"{a}*{b}={a * b}\n#### {a * b}", "result": a * b, "level": 1 + a // 50}
        for a, b in pairs
    ]


def save_tiny_model(folder: Path) -> None:
    """Save a model with the special tokens and the ends of the real one."""
    tokenizer = chat_tokenizer(eos_token="<|im_end|>")
    config = AutoConfig.for_model(
        **{**TINY, "max_position_embeddings": 256}, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder: the files of the page, rows of that kind, a tiny model in place of the real one."""
    folder = tmp_path_factory.mktemp("reader")
    for name, content in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    task = (folder / "experiments/tasks/my_task.yaml").read_text(encoding="utf-8")
    with (folder / "experiments/tasks/my_task/sft.yaml").open("a", encoding="utf-8") as file:
        file.write(task[task.index("data:\n") :])  # as the page tells
    lines = "".join(json.dumps(row) + "\n" for row in rows())
    (folder / "questions.jsonl").write_text(lines, encoding="utf-8")
    save_tiny_model(folder / "tiny")
    settings = yaml.safe_load((packaged_root() / "models" / f"{MODEL}.yaml").read_text(encoding="utf-8"))
    settings["model"]["init_args"]["policy"]["init_args"]["pretrained"] = "tiny"
    (folder / "experiments" / "models").mkdir()
    (folder / "experiments" / "models" / f"{MODEL}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    return folder


def small(command: str) -> list[str]:
    """The same command for a few iterations on a few rows."""
    words = shlex.split(command, comments=True)[1:]
    if words[0] == "fit":
        return [*words, "--config", "small.yaml", *([] if "sft" in words else SHORT)]
    if words[0] == "compare":
        settings = {"model.init_args.sampling.max_new_tokens": 6, "model.init_args.sampling.num_responses": 2}
        overrides = {**dotted(SMALL), **settings}
        return [*words, "--seeds=[1]", f"--overrides={json.dumps(overrides)}"]
    return words


def dotted(section: dict[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in section.items():
        found |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_the_page_has_its_files_and_commands() -> None:
    assert [name for name, _ in FILES] == [
        "experiments/tasks/my_task.yaml",
        "experiments/tasks/my_task/sft.yaml",
        "my_reward.py",
        "my_comparison.yaml",
    ]
    assert len(COMMANDS) >= 10


@pytest.fixture
def reader(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder as the working folder."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "my_reward", raising=False)
    return folder


@pytest.mark.slow
def test_the_commands_of_the_page_run_in_their_order(reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        if "--print_config" in command or "compare" in command:
            with pytest.raises(SystemExit, match="0"):
                main([*small(command), *(["--print_config"] if "compare" in command else [])])
        else:
            assert main(small(command)) == 0, (command, capsys.readouterr().err[-2000:])
    run = reader / "runs" / "my_task" / MODEL
    config = yaml.safe_load((run / "ippo" / "config.yaml").read_text(encoding="utf-8"))
    assert config["callbacks"][-1]["class_path"].endswith("InfluenceFilter")
    rewards = json.loads((reader / "runs" / "short" / "history.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert {"rollout/reward/right", "rollout/reward/short"} <= set(rewards)
    assert (run / "ppo" / "report" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("reader")
def test_the_comparison_of_the_page_runs() -> None:
    for command in COMMANDS:
        if "--base sft" in command or "compare" in command:
            assert main(small(command)) == 0, command
    assert Path("runs/my_comparison/report.html").is_file()
