"""Detoxification with tiny models of the same architectures and labels as those that the task names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import RobertaConfig, RobertaForSequenceClassification

from ippo_lightning.cli.main import main
from ippo_lightning.data import byte_tokenizer

GPT_NEO = {
    "model_type": "gpt_neo",
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 8,
    "max_position_embeddings": 64,
}
OUTPUTS = {"reward": {"nothate": 3.0, "hate": -2.0}, "judge": {"neutral": -1.0, "toxic": 1.0}}
"""What each classifier puts out for any text, in the order of its labels."""


def make_classifier(folder: str, outputs: dict[str, float]) -> str:
    """Save a classifier whose head ignores the text."""
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    labels: dict[str, Any] = {
        "id2label": dict(enumerate(outputs)),
        "label2id": {label: number for number, label in enumerate(outputs)},
    }
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=130, **sizes, **labels)
    model = RobertaForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.out_proj.weight.zero_()
        model.classifier.out_proj.bias.copy_(torch.tensor(list(outputs.values())))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_raw_output_of_nothate_rewards_and_another_classifier_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reward, judge = (make_classifier(name, outputs) for name, outputs in OUTPUTS.items())
    texts = [f"{number} is the number of this text" for number in range(12)]
    Path("prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model = {
        "policy": {"init_args": {"pretrained": None, "config": GPT_NEO, "tokenizer": {"class_path": "byte_tokenizer"}}},
        "reward": {"init_args": {"pretrained": reward}},
        "grader": {"init_args": {"reward": {"init_args": {"pretrained": judge}}}},
        "sampling": {"max_new_tokens": 4},
    }
    task = {"train": {"path": "prompts.jsonl", "columns": {"first_words": 4}}, "num_validation": 4, "num_test": 4}
    settings = {
        "loop": {"run_dir": "run", "max_iterations": 1, "progress_bar": False, "evaluate_first": False},
        "model": {"init_args": model},
        "data": {"init_args": {"batch_size": 4, "task": {"init_args": task}}},
    }
    Path("small.yaml").write_text(yaml.safe_dump(settings))
    assert main(["fit", "--task", "detox", "--method", "iif_text", "--config", "small.yaml"]) == 0
    row = json.loads(Path("run/history.jsonl").read_text())
    assert row["rollout/reward_mean"] == pytest.approx(OUTPUTS["reward"]["nothate"])
    results = json.loads(Path("run/results.json").read_text())
    assert results["reward"] == pytest.approx(OUTPUTS["reward"]["nothate"])
    assert results["exact_match"] == 0.0, "the judge finds no response neutral"
