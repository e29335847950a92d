"""`ippo evaluate RUN` of a run in an environment: its own numbers again, each episode, intervals, and mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from scipy import stats

from ippo_lightning.cli.main import main
from ippo_lightning.modules import ControlPPOModule

SINGLE_PRECISION = 1e-5
"""The states of a run's own metrics are float32, and returns have two digits before the point."""
EPISODES = 6


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "cartpole"
    words = ["--task", "cartpole", f"--loop.run_dir={run}", "--model.init_args.num_steps=32", "--callbacks=[]"]
    words += ["--model.init_args.update.num_epochs=1", "--loop.max_iterations=2", "--loop.evaluate_first=false"]
    words += ["--loop.evaluate_every_n_iterations=0", f"--data.init_args.test_episodes={EPISODES}"]
    assert main(["fit", *words, "--data.init_args.evaluation_episodes=3", "--loop.progress_bar=false"]) == 0
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "cartpole"))


def evaluation(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The numbers and the episodes of the one evaluation below a folder."""
    (path,) = folder.rglob("evaluation.json")
    episodes = parquet.read_table(path.parent / "episodes.parquet").to_pylist()
    return json.loads(path.read_text(encoding="utf-8")), episodes


def test_a_run_has_its_own_final_numbers_again_with_intervals_over_its_episodes(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run)]) == 0
    printed = capsys.readouterr().out
    content, episodes = evaluation(run)
    own = json.loads((run / "results.json").read_text(encoding="utf-8"))
    returns = np.array([episode["episode_return"] for episode in episodes])
    assert len({episode["seed"] for episode in episodes}) == EPISODES
    number = content["numbers"]["episode_return"]
    assert number["value"] == pytest.approx(own["episode_return"], abs=SINGLE_PRECISION)
    assert number["value"] == pytest.approx(returns.mean(), abs=1e-12)
    drawn = stats.bootstrap((returns,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(0))
    assert number["interval"] == pytest.approx(list(drawn.confidence_interval), abs=1e-9)
    assert content["numbers"]["episode_length"]["value"] == pytest.approx(own["episode_length"], abs=SINGLE_PRECISION)
    assert f"test: {EPISODES} episodes of CartPole-v1, drawn actions" in printed
    assert max(len(line) for line in printed.splitlines() if not line.startswith("Results: ")) <= 80


def test_the_policy_at_the_start_is_paired_with_the_trained_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(run), "--baseline", "start", "--episodes", "4", "--output", str(tmp_path / "both")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "minus start, over the same episodes (4)" in " ".join(printed.split())
    start, trained = (evaluation(tmp_path / "both" / name) for name in ("start", "cartpole"))
    weights = {one[0]["settings"]["model"]["weights"] for one in (start, trained)}
    assert len(weights) == 2
    found = json.loads((tmp_path / "both" / "differences.json").read_text())["differences"]
    assert found["cartpole"]["episode_return"]["value"] == pytest.approx(
        np.mean([b["episode_return"] - a["episode_return"] for a, b in zip(start[1], trained[1], strict=True)])
    )


@pytest.mark.slow
def test_the_start_is_that_of_the_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    attach = ControlPPOModule.attach

    def spy(self: Any, *args: Any, **more: Any) -> Any:
        seen.append({name: value.clone() for name, value in self.policy.state_dict().items()})
        return attach(self, *args, **more)

    monkeypatch.setattr(ControlPPOModule, "attach", spy)
    assert main(["fit", "--config", str(run / "config.yaml"), f"--loop.run_dir={tmp_path / 'again'}"]) == 0
    assert main(["evaluate", str(run), "--model", "start", "--episodes", "1"]) == 0
    first, second = seen
    assert all(bool((first[name] == second[name]).all()) for name in first)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples", "8"], "samples: 8 is of responses to prompts, and this run plays episodes"),
        (["--temperature", "0"], "temperature: 0.0 is of responses"),
        (["--episodes", "0"], "episodes: 0"),
        (["--model", "package:none"], "model: package:none cannot replace the policy of the run"),
    ],
)
def test_what_does_not_fit_is_one_line(
    finished: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(finished), *words]) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith(f"ippo: error: {message}")
    assert "\n" not in printed


def test_a_run_without_checkpoints_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "checkpoints")
    assert main(["evaluate", str(run)]) == 2
    assert capsys.readouterr().err.startswith("ippo: error: run: the run has no checkpoint, and ")
