"""Prompts are chosen before sampling: in a run, after a resume, on two ranks, and together with a filter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import two_ranks_prompts
from launching import Outcome, outcome_of
from training_parts import same, tiny_data, tiny_loop, tiny_module, tiny_policy, trainable
from two_ranks_prompts import LENGTHS, ByParity, Sampled

from ippo_lightning.callbacks import InfluenceFilter, PromptSelection
from ippo_lightning.engine import DynamicSampling
from ippo_lightning.errors import UserError
from ippo_lightning.modules import PPOModule, SFTModule
from ippo_lightning.policies import LoraSettings
from ippo_lightning.records import RolloutPlan
from ippo_lightning.selection import (
    DropNegatives,
    IntermediateDifficulty,
    LeaveOneOutMean,
    PromptRule,
    RandomPrompts,
)

FLOAT32 = 1e-6
RULES: dict[str, Any] = {
    "random": RandomPrompts,
    "predicted": IntermediateDifficulty,
    "sources": ByParity,
}


def fitted(
    folder: Path, rule: PromptRule, *, fraction: float = 0.25, **changes: Any
) -> tuple[PPOModule, list[list[str]]]:
    """A run that samples some of each eight prompts; also which ones in each iteration."""
    module, sampled = tiny_module(), Sampled()
    callbacks = [PromptSelection(rule, fraction=fraction), *changes.pop("callbacks", []), sampled]
    tiny_loop(folder, module, callbacks=callbacks, **changes).fit()
    return module, sampled.prompts


# --- what is sampled -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "changes"),
    [("head", {}), ("adapter", {"lora": LoraSettings()}), ("separate", {})],
    ids=["head", "adapter", "separate"],
)
def test_the_value_of_a_prompt_is_that_of_the_state_before_its_first_response_token(
    value: str, changes: dict[str, Any]
) -> None:
    module = tiny_module(policy=tiny_policy(value=value, **changes), update={"micro_batch_size": 3})
    prompts = ["1+2=", "10+20+3=", "7-4=", "99-1+5="]
    plan = module.plan_rollout({"prompts": prompts, "examples": [{}] * 4})
    plan.allocate(torch.ones(4, dtype=torch.long), reason="test")
    expected = module.rollout(plan).values[:, 0]
    assert len(expected.unique()) == 4
    torch.testing.assert_close(module.prompt_values(prompts), expected, rtol=0, atol=FLOAT32)


def test_the_value_of_a_prompt_is_the_head_on_the_last_hidden_state_of_the_model_alone() -> None:
    module = tiny_module(policy=tiny_policy().double())
    policy, prompts = module.policy, ["1+2=", "10+20+3="]
    trunk, head = policy.language_model.base_model, policy.value_head
    assert head is not None
    for prompt, found in zip(prompts, module.prompt_values(prompts), strict=True):
        ids, _ = policy.text.encode_prompts([prompt], max_length=32)
        features = trunk(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
        assert float(found) == pytest.approx(
            (features @ head.linear.weight[0] + head.linear.bias[0]).item(), abs=FLOAT32
        )


def test_the_prompts_with_the_nearest_values_are_sampled_with_their_examples(tmp_path: Path) -> None:
    module, data = tiny_module(), tiny_data()
    data.setup()
    batch = next(iter(data.train_dataloader()))
    distances = (module.prompt_values(batch["prompts"]) - 0.5).abs().tolist()
    nearest = sorted(range(8), key=lambda place: distances[place])[:3]
    plan: RolloutPlan = module.plan_rollout(batch)
    PromptSelection(IntermediateDifficulty(), num_kept=3).on_rollout_start(None, module, plan)
    assert list(plan.batch["prompts"]) == [batch["prompts"][place] for place in sorted(nearest)]
    assert list(plan.batch["examples"]) == [batch["examples"][place] for place in sorted(nearest)]
    assert plan.counts.tolist() == [2, 2, 2]
    assert plan.history == ["PromptSelection(IntermediateDifficulty)"]


def test_a_smaller_batch_is_sampled_as_a_whole() -> None:
    module = tiny_module()
    plan = module.plan_rollout({"prompts": ["1+2=", "3+4="], "examples": [{}, {}]})
    PromptSelection(RandomPrompts(), num_kept=5).on_rollout_start(None, module, plan)
    assert list(plan.batch["prompts"]) == ["1+2=", "3+4="]


# --- runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_a_resumed_run_samples_the_prompts_of_an_uninterrupted_one(rule: str, tmp_path: Path) -> None:
    whole, prompts = fitted(tmp_path / "whole", RULES[rule](), max_iterations=4)
    _, first = fitted(tmp_path / "broken", RULES[rule](), max_iterations=2)
    resumed, rest = fitted(tmp_path / "broken", RULES[rule](), max_iterations=4, resume=True)
    assert [len(of_iteration) for of_iteration in prompts] == [2] * 4
    assert first + rest == prompts
    assert same(trainable(resumed), trainable(whole))


@pytest.mark.parametrize("rule", ["predicted", "sources"])
def test_prompts_are_chosen_by_one_rule_and_rollouts_by_another(rule: str, tmp_path: Path) -> None:
    chosen = InfluenceFilter(rule=DropNegatives(fraction=1.0), target=LeaveOneOutMean(), min_keep=1)
    module, prompts = fitted(tmp_path / "run", RULES[rule](), callbacks=[chosen], fraction=0.5, max_iterations=1)
    stats = module.last_stats
    assert stats is not None
    assert sorted(set(stats.episodes.prompts)) == prompts[-1]
    assert len(stats.episodes) == 8
    metrics = stats.metrics
    assert (metrics["rollout/prompts_offered"], metrics["rollout/prompts_sampled"]) == (8, 4)
    scores = stats.plan.history[-1].scores
    assert scores is not None
    assert stats.plan.keep.tolist() == (scores >= 0).tolist()
    assert 0 < metrics["influence/scored_kept_fraction"] < 1


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return outcome_of(Path(two_ranks_prompts.__file__), tmp_path_factory)


def test_two_ranks_learn_what_one_process_learns_from_all_rows(two_ranks: Outcome) -> None:
    found, rule = two_ranks_prompts.learned(list(range(len(LENGTHS))))
    state = {name: {str(key): own for key, own in part.items()} for name, part in rule.state_dict().items()}
    assert sorted(rule.counts.values()) == [1, 1, 3]
    for numbers in two_ranks.ranks:
        assert numbers["keys"] == found.keys
        assert numbers["advantages"] == found.advantages.tolist()
        assert numbers["state"] == state


@pytest.mark.parametrize("name", ["predicted", "sources"])
def test_ranks_with_batches_of_different_sizes_train_together(name: str, two_ranks: Outcome) -> None:
    first, second = two_ranks.tensors(name)
    assert same(first, second)
    for numbers, count in zip(two_ranks.ranks, (4, 2), strict=True):
        assert [len(prompts) for prompts in numbers[name]["prompts"]] == [count] * 2
        assert numbers[name]["numbers"] == [11, 6]


def test_a_run_of_two_ranks_resumes(two_ranks: Outcome) -> None:
    assert same(two_ranks.tensors("sources")[0], two_ranks.tensors("broken")[0])


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": 0.0}, r"PromptSelection\.fraction: 0.0 is out of range"),
        ({"num_kept": 0}, r"PromptSelection\.num_kept: 0 is out of range"),
        ({"seed": -1}, r"PromptSelection\.seed: -1 is out of range"),
        ({"rule": "random"}, r"PromptSelection\.rule: got a str; expected a PromptRule"),
    ],
)
def test_an_argument_out_of_its_range_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PromptSelection(**{"rule": RandomPrompts(), **changes})


class Unknown(RandomPrompts):
    needs = frozenset({"scores"})


@pytest.mark.parametrize(
    ("rule", "settings", "policy", "message"),
    [
        (IntermediateDifficulty, {}, {"value": "none"}, "IntermediateDifficulty reads .* values, and .* no critic"),
        (RandomPrompts, {"num_kept": 8}, {}, r"num_kept: 8 of data\.batch_size: 8 prompts leaves no choice"),
        (Unknown, {}, {}, r"Unknown\.needs: 'scores' is unknown; expected names from values"),
    ],
)
def test_a_run_is_refused_before_its_first_iteration(
    rule: Any, settings: dict[str, Any], policy: dict[str, Any], message: str, tmp_path: Path
) -> None:
    from critic_free import critic_free_module

    module = critic_free_module("grpo") if policy else tiny_module()
    with pytest.raises(UserError, match=message):
        tiny_loop(tmp_path / "run", module, callbacks=[PromptSelection(rule(), **settings)]).fit()
    assert module.iteration == 0


def test_prompts_that_dynamic_sampling_takes_without_the_rule_are_refused(tmp_path: Path) -> None:
    module = tiny_module(dynamic_sampling=DynamicSampling(num_prompts=2))
    with pytest.raises(UserError, match=r"PromptSelection: model\.dynamic_sampling takes other prompts"):
        tiny_loop(tmp_path / "run", module, callbacks=[PromptSelection(RandomPrompts())]).fit()
    assert module.iteration == 0


def test_a_module_that_samples_nothing_is_refused() -> None:
    module = SFTModule(policy=tiny_policy(value="none", reference="none"))
    with pytest.raises(UserError, match="SFTModule samples nothing"):
        PromptSelection(RandomPrompts()).setup(None, module, "fit")


def test_a_batch_without_prompts_is_refused() -> None:
    plan = RolloutPlan(batch={"seeds": [1]}, counts=torch.ones(1, dtype=torch.long))
    with pytest.raises(UserError, match="the batch has no prompts"):
        PromptSelection(RandomPrompts()).on_rollout_start(None, object(), plan)


def test_two_of_them_have_names_of_their_own_in_a_checkpoint() -> None:
    keys = {PromptSelection(make()).state_key for make in RULES.values()}
    assert len(keys) == len(RULES)
