"""Runs with the real vLLM on a CPU (`make test-vllm`): on two ranks, and when the engine's process is killed."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import launching
import psutil
import pytest
from training_parts import same, tiny_loop, trainable
from two_ranks_vllm import __file__ as two_ranks_vllm
from two_ranks_vllm import vllm_module

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: make test-vllm"),
    pytest.mark.timeout(600),
]


class KillsTheEngine:
    """Kills vLLM's processes when the third iteration is about to sample."""

    state_key = "kills"

    def state_dict(self) -> dict[str, Any]:
        return {}

    def on_rollout_start(self, trainer: Any, pl_module: Any, plan: Any) -> None:
        if pl_module.iteration == 2:
            for child in psutil.Process(os.getpid()).children(recursive=True):
                if "VLLM" in child.name():
                    child.kill()


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_whose_engine_is_killed_loses_nothing_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    unbroken = vllm_module()
    tiny_loop(tmp_path / "unbroken", unbroken, max_iterations=3, checkpoint_every_n_iterations=0).fit()
    unbroken.policy._samplers.clear()
    rows = history(tmp_path / "unbroken")
    assert all(0 < row["rollout/sampler_gap_mean"] < 1e-4 for row in rows)
    assert all(row["rollout/sampler_gap_mean"] <= row["rollout/sampler_gap_max"] < 1e-2 for row in rows)

    broken, numbers = tmp_path / "broken", {"max_iterations": 3, "checkpoint_every_n_iterations": 0}
    with pytest.raises(ConnectionError, match="vLLM's engine has ended"):
        tiny_loop(broken, vllm_module(), callbacks=[KillsTheEngine()], **numbers).fit()
    assert len(history(broken)) == 2  # and no checkpoint was due before the third

    resumed = vllm_module()
    loop = tiny_loop(broken, resumed, resume=True, **numbers)
    loop.fit()
    resumed.policy._samplers.clear()
    assert [row["iteration"] for row in history(broken)] == [0, 1, 2]
    assert same(trainable(resumed), trainable(unbroken))


@pytest.mark.parametrize("trained", ["full", "lora"])
def test_each_of_two_ranks_samples_with_an_engine_of_its_own(
    trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "TIME_LIMIT", 540)  # two engines start, which takes a busy machine minutes
    launching.run_on_two_ranks(Path(two_ranks_vllm), tmp_path, trained)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))
    assert first["greedy"] == first["plain"] == second["greedy"] == second["plain"]
    assert all(row["rollout/sampler_gap_max"] < 1e-2 for row in history(tmp_path / "run"))
