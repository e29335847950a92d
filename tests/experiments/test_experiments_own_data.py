"""A stranger's files, with columns of their own: `ippo fit` trains on them by YAML alone, first SFT and then PPO."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiment_files import TINY

from ippo_lightning.cli.main import main

REWARD = """
def short(prompts, responses, examples):
    return [1.0 / (1 + len(response)) + 0.0 * len(example["topic"]) for response, example in zip(responses, examples)]
"""
ROWS = [
    {"id": n, "frage": f"{n}+{n + 1}?", "weg": f"{n}+{n + 1}={2 * n + 1}", "loesung": 2 * n + 1, "topic": "sums"}
    for n in range(40)
]
SPLITS = {"num_validation": 4, "num_test": 4, "num_influence_demonstrations": 4}
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stranger's folder: a jsonl, a csv with other names, conversations, and a reward."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_reward", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("my_reward.py").write_text(REWARD, encoding="utf-8")
    Path("fragen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    with Path("demos.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["q", "how", "a"])
        table.writerows([row["frage"] + " ", row["weg"], row["loesung"]] for row in ROWS)
    talks = [
        {"turns": [{"from": "human", "value": row["frage"]}, {"from": "gpt", "value": row["weg"]}]} for row in ROWS
    ]
    Path("talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks), encoding="utf-8")
    return tmp_path


def experiment(task: dict[str, Any], run: str, **policy: Any) -> str:
    content = {
        "loop": {
            "run_dir": f"runs/{run}",
            "max_iterations": 2,
            "evaluate_every_n_iterations": 1,
            "progress_bar": False,
        },
        "model": {
            "init_args": {
                "policy": {"init_args": {"pretrained": "runs/sft/model", **policy}},
                "evaluation": {"max_new_tokens": 6, "num_responses": 2},
            }
        },
        "data": {
            "init_args": {"batch_size": 4, "task": {"class_path": "QuestionTask", "init_args": {**SPLITS, **task}}}
        },
    }
    Path(f"{run}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return f"{run}.yaml"


NEW = {"pretrained": None, "config": TINY, "tokenizer": {"class_path": "byte_tokenizer"}}
PPO = ["--model.init_args.sampling.max_new_tokens=6", "--model.init_args.sampling.num_responses=2"]
JSONL = {"path": "fragen.jsonl", "columns": {"prompt": "frage", "answer": "loesung", "keep": ["topic"]}}
CSV = {"path": "demos.csv", "columns": {"prompt": "q", "response": "{how}\n#### {a}", "answer": "a"}}


def results(run: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path("runs") / run / "results.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_supervised_training_on_a_csv_and_ppo_on_the_prompts_of_a_jsonl() -> None:
    demonstrations = {"train": {**CSV, "answer_kind": "hash"}}
    assert main(["fit", "--base", "sft", "--config", experiment(demonstrations, "sft", **NEW)]) == 0
    mixed = {"train": {**JSONL, "answer_kind": "number"}, "demonstrations": {**CSV, "answer_kind": "hash"}}
    assert main(["fit", "--base", "ppo", "--method", "ippo", "--config", experiment(mixed, "ppo"), *PPO]) == 0
    for run in ("sft", "ppo"):
        assert "exact_match" in json.dumps(results(run))
    # the rows are the same ones, so the run goes on in the middle of them
    assert main(["fit", "--resume", "runs/ppo", "--loop.max_iterations=3"]) == 0
    assert len(Path("runs/ppo/history.jsonl").read_text(encoding="utf-8").splitlines()) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_prompts_without_answers_train_on_a_reward_and_evaluation_gives_its_mean() -> None:
    talks = {"train": {"path": "talks.jsonl", "columns": {"messages": "turns"}}}
    no_evaluation = ["--loop.evaluate_first=false", "--loop.test_at_end=false", "--loop.evaluate_every_n_iterations=0"]
    settings = experiment(talks, "sft", chat_template=CHAT, **NEW)
    assert main(["fit", "--base", "sft", "--config", settings, *no_evaluation]) == 0
    prompts = {"train": {**JSONL, "columns": {"prompt": "frage", "keep": ["topic"]}}}
    rewarded = experiment(prompts, "ppo", chat_template=CHAT, system_prompt="Be brief.")
    words = ["fit", "--base", "ppo", "--config", rewarded, *PPO, "--model.init_args.reward=my_reward.short"]
    assert main([*words, "--loop.best_metric=reward"]) == 0
    written = [json.loads(line) for line in (Path("runs/ppo") / "evaluations.jsonl").read_text().splitlines()]
    assert len(written) == 3
    assert all(0 < row["reward"] <= 1 and "exact_match" not in row for row in written)
    assert main(["report", "runs/ppo", "--output", "runs/report"]) == 0


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"train": {"path": "fragen.jsonl", "columns": {"promt": "frage"}}}, "promt"),
        ({"train": {"path": "fragen.jsonl", "columns": {"prompt": "question"}}}, "fragen.jsonl, line 1: there is no"),
        ({"train": {"path": "missing.jsonl", "columns": {"prompt": "frage"}}}, "'missing.jsonl' does not exist"),
        ({"train": {"path": "fragen.jsonl", "layout": "maths"}}, "maths"),
        ({"train": {"path": "fragen.jsonl"}}, "columns"),
        ({"train": JSONL}, "answer_kind"),
        ({"train": {"path": "fragen.jsonl", "columns": {"prompt": "frage"}}}, "model.reward: null"),
    ],
    ids=["key", "column", "file", "layout", "no columns", "no kind", "no reward"],
)
@pytest.mark.usefixtures("folder")
def test_a_mistake_is_one_line(task: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--base", "ppo", "--config", experiment(task, "ppo", **NEW), *PPO]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ippo:")]
    assert len(lines) == 1
    assert said in lines[0]
