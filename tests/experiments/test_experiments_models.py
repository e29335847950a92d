"""Each file of `experiments/models/` in small: SFT, then PPO and I-PPO from its result, with nothing but the names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from experiment_files import CONTROL_MODELS
from safetensors.torch import load_file
from shrunken_models import ANSWER, QUESTION, SHRUNKEN
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ippo_lightning.cli.axis_values import is_overlay
from ippo_lightning.cli.experiment_paths import axis_names, packaged_root
from ippo_lightning.cli.main import main

MODELS = packaged_root() / "models"
OF_TASKS = ("arithmetic_llama", "gsm8k_llama")
"""Models that the SFT run of a task makes; the tests of the task run them."""
WHOLE = [
    name
    for name in axis_names("model")
    if name not in (*OF_TASKS, *CONTROL_MODELS) and not is_overlay(MODELS / f"{name}.yaml")
]
POLICY = "model.init_args.policy.init_args"
FIRST = "gemma-2-2b"
"""The one that the default tests run: soft caps, a sliding window, tied embeddings, and BOS from the template."""
ROWS = [{"question": QUESTION, "worked_answer": ANSWER, "answer": "3"}] + [
    {"question": f"What is {n}+1?", "worked_answer": f"{n}+1={n + 1}", "answer": f"{n + 1}"} for n in range(2, 30)
]
SMALL = {
    "loop.max_iterations": 2,
    "loop.evaluate_every_n_iterations": 0,
    "loop.evaluate_first": "false",
    "loop.test_at_end": "false",
    "loop.progress_bar": "false",
    "data.init_args.batch_size": 4,
    "data.init_args.task.init_args.num_test": 2,
    "data.init_args.task.init_args.num_validation": 2,
    "data.init_args.task.init_args.num_influence_demonstrations": 4,
}
SFT = {**SMALL, "model.init_args.optimizer.learning_rate": 0.01, "model.init_args.optimizer.warmup_iterations": 0}
PPO = {**SMALL, "model.init_args.sampling.max_new_tokens": 6, "model.init_args.sampling.num_responses": 2}
RATE = 2e-6
"""Of full fine-tuning, as in the files."""


def slow_but(names: Sequence[str], default: str) -> list[Any]:
    return [pytest.param(name, marks=[] if name == default else pytest.mark.slow) for name in names]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    Path("data").mkdir()
    Path("data/questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return tmp_path


def fit(*words: str, model: str, **settings: Any) -> int:
    """Run a command of a user with the model in small; only the place of its weights and sizes are other ones."""
    name = model.split("+")[0]
    place = Path("checkpoints") / name
    if not place.is_dir():
        SHRUNKEN[name].save(place)
    options = {f"{POLICY}.pretrained": place, **settings}
    given = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return main(["fit", *words, "--task", "own_data", "--model", model, *given])


def history(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "history.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(folder: str | Path) -> dict[str, Tensor]:
    [file] = Path(folder).glob("*.safetensors")
    return load_file(file)


def distance(one: str | Path, other: str | Path) -> float:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_every_model_file_has_a_model_in_small() -> None:
    assert set(WHOLE) == set(SHRUNKEN)
    assert set(axis_names("model")) == {*WHOLE, *OF_TASKS, *CONTROL_MODELS, "lora", "nf4", "bf16"}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("model", slow_but(sorted(set(WHOLE) - {"smollm2-135m"}), FIRST))
def test_ppo_goes_on_where_supervised_training_of_the_same_model_has_ended(model: str) -> None:
    assert fit("--base", "sft", model=model, **SFT) == 0
    assert fit(model=model, **PPO) == 0
    assert fit("--method", "ippo", model=model, **PPO) == 0
    runs = {name: f"runs/own_data/{model}/{name}" for name in ("sft", "ppo", "ippo")}
    for run in runs.values():
        assert len(history(run)) == 2
    assert [row for row in history(runs["ippo"]) if "influence/scored_kept_fraction" in row]
    started = yaml.safe_load(Path(runs["ippo"], "config.yaml").read_text(encoding="utf-8"))["model"]["init_args"]
    assert started["policy"]["init_args"]["start_from"] == runs["sft"]
    # two steps of Adam at the rate of the file move no weight further than this; those of SFT are larger
    steps = sum(row["update/optimizer_steps"] for row in history(runs["ppo"]))
    assert distance(f"{runs['ppo']}/model", f"{runs['sft']}/model") <= 2 * RATE * steps
    assert distance(f"{runs['sft']}/model", f"checkpoints/{model}") > 1e-3


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("model", slow_but(WHOLE, "qwen3-0.6b"))
def test_prompts_and_ends_are_those_that_the_model_was_trained_on(model: str) -> None:
    """The saved model has the same template and end tokens, so other programs prompt it in the same way."""
    assert fit("--base", "sft", model=model, **{**SFT, "loop.max_iterations": 1}) == 0
    run = Path("runs/own_data", model, "sft/model")
    run = run / "merged" if (run / "merged").is_dir() else run
    small, tokenizer = SHRUNKEN[model], AutoTokenizer.from_pretrained(run)
    messages = [{"role": "user", "content": QUESTION}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == small.prompt
    turn = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": ANSWER}], tokenize=False)
    assert turn.startswith(f"{small.prompt}{ANSWER}{small.end}")
    ends = GenerationConfig.from_pretrained(run).eos_token_id
    assert tokenizer.convert_tokens_to_ids(small.end) in (ends if isinstance(ends, list) else [ends])


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("overlay", ["lora", pytest.param("nf4+bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", slow_but(WHOLE, "phi-3-mini"))
def test_ppo_continues_the_adapter_of_supervised_training(model: str, overlay: str) -> None:
    name = f"{model}+{overlay}"
    assert fit("--base", "sft", model=name, **SFT) == 0
    assert fit("--method", "ippo", model=name, **{**PPO, "model.init_args.optimizer.learning_rate": RATE}) == 0
    sft, ippo = (Path("runs/own_data", name, base, "model/adapter") for base in ("sft", "ippo"))
    steps = sum(row["update/optimizer_steps"] for row in history(f"runs/own_data/{name}/ippo"))
    assert distance(ippo, sft) <= 2 * RATE * steps
    # the second matrix of a new adapter is zero
    assert max(float(value.abs().max()) for key, value in weights(sft).items() if "lora_B" in key) > 1e-3
    targets = json.loads((ippo / "adapter_config.json").read_text(encoding="utf-8"))["target_modules"]
    assert any(target.endswith("qkv_proj") for target in targets) == (model == "phi-3-mini")


@pytest.mark.usefixtures("folder")
def test_without_supervised_training_the_message_names_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(model=FIRST, **PPO) == 2
    said = capsys.readouterr().err
    assert "ippo: " in said
    assert f"policy.start_from: the run 'runs/own_data/{FIRST}/sft' does not exist" in said
    assert "--base sft" in said
    assert "null to start from checkpoints/gemma-2-2b" in said
    assert fit(model=FIRST, **{**PPO, f"{POLICY}.start_from": "null", "loop.max_iterations": 1}) == 0
    assert distance(f"runs/own_data/{FIRST}/ppo/model", f"checkpoints/{FIRST}") < 1e-4


@pytest.mark.parametrize("model", ["llama-3.2-1b", "gemma-3-1b"])
def test_a_model_in_small_is_loaded_by_plain_transformers(model: str, tmp_path: Path) -> None:
    SHRUNKEN[model].save(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.model_type == SHRUNKEN[model].config.model_type
