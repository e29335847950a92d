"""`ippo diagnose`, `trace` and `intervene` of a run that kept nothing: one line that tells what would be right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ippo_lightning.cli.main import main

NO_BUFFERS = "has no buffers/; train with the callback EpisodeLog and its keep_buffers: true, for example by --method"
OF_SFT = "is of supervised fine-tuning, which has no rollouts; expected a run of PPO or another algorithm"


@pytest.mark.parametrize("command", ["diagnose", "trace", "intervene"])
@pytest.mark.parametrize(
    ("history", "words"),
    [
        ({"iteration": 0, "rollout/reward_mean": 0.5}, NO_BUFFERS),
        ({"iteration": 0, "sft/loss": 4.5}, OF_SFT),
        (None, NO_BUFFERS),
    ],
    ids=["ppo", "sft", "not begun"],
)
def test_a_run_without_buffers_is_one_line(
    command: str, history: dict[str, float] | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("seed_everything: 1\n")
    if history is not None:
        (tmp_path / "history.jsonl").write_text(json.dumps(history) + "\n")
    assert main([command, str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"ippo: error: run: {tmp_path} {words}")
    assert printed.count("\n") == 1
