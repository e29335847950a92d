"""A policy sharded over two gloo processes (FSDP2): the same answer as one process with the full policy."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import two_ranks
import two_sharded_ranks
from launching import Outcome, outcome_of
from lightning.fabric import Fabric
from peft import PeftModel
from training_parts import tiny_loop, tiny_module, tiny_policy, trainable
from transformers import AutoModelForCausalLM
from two_sharded_ranks import FOUR_BITS, KINDS, OTHERS, RUN, SCORINGS, SLOW_FOUR_BITS, SLOW_KINDS

from ippo_lightning.distributed.dtensor import local_bytes
from ippo_lightning.errors import UserError
from ippo_lightning.modules import OptimizerSettings
from ippo_lightning.policies import CausalLMPolicy, LoraSettings
from ippo_lightning.policies.quantized import dense_copy
from ippo_lightning.run.fsdp_strategy import ShardedStrategy
from ippo_lightning.storage.quantized_loading import quantization_config

EXACT = 1e-10
"""fp64: the two sides add the same numbers in another order."""
DIFFERENCE = 1e-4
"""Relative to the largest score: a quotient of differences of about 1e-5 in fp64, rounded otherwise on each side."""
A_FEW_NUMBERS = 4096
"""Bytes: counts, metrics, decisions, and the episodes that change ranks."""
FLOAT32_NORMS = 1e-6
"""Relative to the largest score: norms of Llama round to float32, and the weight of a batch passes through them."""
FLOAT32 = 1e-6
"""Scores relative to the largest, and logits of order one: float32 sums in another order."""
FLOAT32_STEPS = 1e-5
"""Parameters after two Adam steps of 1e-3 in float32, whose direction amplifies rounding of small gradients."""
ROWS = ([0, 2, 4, 6, 7], [1, 3, 5])
"""Of the buffer, on each rank."""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return outcome_of(Path(two_sharded_ranks.__file__), tmp_path_factory)


@pytest.fixture(scope="module")
def slow_outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return outcome_of(Path(two_sharded_ranks.__file__), tmp_path_factory, "slow")


def some_slow(kinds: Iterable[str], slow: Collection[str]) -> list[Any]:
    """Return each kind with the name of the outcome it is in; the slow ones are marked."""
    return [
        pytest.param("slow_outcome", kind, marks=pytest.mark.slow) if kind in slow else ("outcome", kind)
        for kind in kinds
    ]


@pytest.mark.parametrize(("source", "kind"), some_slow(KINDS, SLOW_KINDS))
def test_scores_and_update_of_a_sharded_policy_are_those_of_a_full_one(
    request: pytest.FixtureRequest, source: str, kind: str, tmp_path: Path
) -> None:
    outcome: Outcome = request.getfixturevalue(source)
    fabric = Fabric(accelerator="cpu", devices=1)
    loop, module, episodes = two_sharded_ranks.halves(tmp_path, kind, fabric, list(range(8)))
    selector, plan = two_sharded_ranks.InfluenceFilter().selector, two_sharded_ranks.UpdatePlan(episodes=episodes)
    direction = selector.take_gradients(plan, module=module, trainer=loop, iteration=0).mean
    scores = {name: two_sharded_ranks.scores_of(loop, module, episodes, way) for name, way in SCORINGS.items()}
    uneven = two_sharded_ranks.uneven_demonstrations(loop)
    scores["uneven demonstrations"] = two_sharded_ranks.scores_of(
        loop, module, episodes, two_sharded_ranks.NO_GROUPS, demonstrations=uneven
    )
    parameters = two_ranks.update_episodes(module, episodes, list(range(8)))
    parameters.pop("advantage_sums")
    for rows, half in zip(ROWS, outcome.tensors(f"halves.{kind}"), strict=True):
        for name, block in direction.items():
            torch.testing.assert_close(half[f"direction.{name}"], block, rtol=0, atol=EXACT)
        for name, expected in scores.items():
            relative = {"finite_difference": DIFFERENCE, "uneven demonstrations": FLOAT32_NORMS}.get(name, 0.0)
            allowed = max(EXACT, relative * float(expected.abs().max()))
            torch.testing.assert_close(half[f"scores.{name}"], expected[rows], rtol=0, atol=allowed)
        for name, parameter in parameters.items():
            assert parameter.dtype == torch.float64
            torch.testing.assert_close(half[name], parameter, rtol=0, atol=EXACT)


@pytest.mark.parametrize(("source", "kind"), some_slow(FOUR_BITS, SLOW_FOUR_BITS))
def test_four_bit_weights_are_sharded_too(
    request: pytest.FixtureRequest, source: str, kind: str, tmp_path: Path
) -> None:
    outcome: Outcome = request.getfixturevalue(source)
    fabric = Fabric(accelerator="cpu", devices=1)
    module = two_sharded_ranks.four_bit_module(kind, tmp_path)
    start = trainable(module)
    loop, episodes = two_sharded_ranks.set_up(tmp_path, module, fabric, list(range(8)))
    scores = two_sharded_ranks.scores_of(loop, module, episodes, SCORINGS["hooks"])
    parameters = two_ranks.update_episodes(module, episodes, list(range(8)))
    parameters.pop("advantage_sums")
    for rows, half in zip(ROWS, outcome.tensors(f"halves.{kind}"), strict=True):
        torch.testing.assert_close(half["scores"], scores[rows], rtol=0, atol=FLOAT32 * float(scores.abs().max()))
        for name, parameter in parameters.items():
            torch.testing.assert_close(half[name], parameter, rtol=0, atol=FLOAT32_STEPS)
            assert not torch.equal(parameter, start[name])
    held = local_bytes(list(module.policy.model.parameters()))
    assert outcome.ranks[0][f"{kind}.bytes"] < 0.55 * held


def test_an_adapter_on_sharded_four_bits_is_saved_alone_and_merged(outcome: Outcome) -> None:
    folder = outcome.folder / "four bits" / "model"
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    base = AutoModelForCausalLM.from_pretrained(
        outcome.folder / "base",
        quantization_config=quantization_config("nf4", double_quantization=True, compute_dtype=torch.float32),
    )
    adapted = PeftModel.from_pretrained(dense_copy(base), next(folder.glob("adapter/**/adapter_config.json")).parent)
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=0, atol=FLOAT32)


def test_a_score_that_is_not_finite_on_one_rank_is_skipped_or_stops_both(outcome: Outcome) -> None:
    first, second = (rank["broken"] for rank in outcome.ranks)
    kept = outcome.tensors("halves.full")
    assert [weight > 0 for weight in first["weights"]] == (kept[0]["scores.hooks"] > 0).tolist()
    assert [weight > 0 for weight in second["weights"]] == [
        bool(score > 0) and row != 1 for row, score in enumerate(kept[1]["scores.hooks"])
    ]
    assert "of another rank" in first["stopped"]
    assert "the score of episode 1 (prompt" in second["stopped"]


@pytest.mark.parametrize(("source", "kind"), some_slow(KINDS, SLOW_KINDS))
def test_the_direction_of_an_adapter_is_full_and_that_of_a_model_sharded(
    request: pytest.FixtureRequest, source: str, kind: str
) -> None:
    outcome: Outcome = request.getfixturevalue(source)
    # two adapters take more than a rank's half of so small a model
    is_large = kind in ("full", "critic", "adapter as critic", "head in blocks")
    for rank in outcome.ranks:
        assert rank[f"{kind}.direction_is_sharded"] == is_large


def test_a_sharded_run_is_evaluated_saved_and_repeats_after_an_interruption(outcome: Outcome) -> None:
    (first, second), (resumed, _) = outcome.tensors("whole"), outcome.tensors("resumed")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(first[name], resumed[name]) for name in first)
    assert outcome.ranks[0]["whole"] == outcome.ranks[1]["whole"] == outcome.ranks[0]["resumed"]
    model = AutoModelForCausalLM.from_pretrained(outcome.folder / "whole" / "model")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, first[f"policy.model.{name}"]), name


@pytest.mark.slow
def test_trainer_and_the_loop_give_bit_equal_parameters_also_sharded(slow_outcome: Outcome) -> None:
    assert all(rank["trainer_is_sharded"] for rank in slow_outcome.ranks)
    by_trainer, by_loop = slow_outcome.tensors("trainer")[0], slow_outcome.tensors("loop")[0]
    assert all(torch.equal(by_trainer[name], by_loop[name]) for name in by_loop)


@pytest.mark.slow
def test_a_checkpoint_of_trainer_resumes_with_a_sharded_policy_as_if_nothing_had_happened(
    slow_outcome: Outcome,
) -> None:
    assert all(rank["trainer_resumes"] for rank in slow_outcome.ranks)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_policies_are_sharded_trained_and_saved_as_well(slow_outcome: Outcome, name: str) -> None:
    assert all(rank[name] for rank in slow_outcome.ranks)
    folder = slow_outcome.folder / name / "model"
    merged = folder / "merged" if "adapter" in name else folder
    model = AutoModelForCausalLM.from_pretrained(merged, dtype="auto")
    assert model.dtype == (torch.bfloat16 if "bfloat16" in name else torch.float32)
    saved = torch.load(slow_outcome.folder / name / "checkpoints" / "last.ckpt", weights_only=True)["parameters"]
    if "adapter" not in name:
        for parameter_name, parameter in model.named_parameters():
            assert torch.equal(parameter, saved[f"policy.model.{parameter_name}"])


def test_a_checkpoint_of_a_sharded_run_has_full_parameters(outcome: Outcome) -> None:
    state = torch.load(outcome.folder / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    first = outcome.tensors("whole")[0]
    assert all(torch.equal(state["parameters"][name], parameter) for name, parameter in first.items())
    shapes = {tuple(entry["exp_avg"].shape) for entry in state["optimizer"]["state"].values()}
    assert shapes == {tuple(parameter.shape) for parameter in first.values()}


def test_each_rank_holds_half_of_parameters_and_optimizer(outcome: Outcome) -> None:
    whole = tiny_module().policy
    rows = [json.loads(line) for line in (outcome.folder / "whole" / "history.jsonl").read_text().splitlines()]
    held = sum(parameter.numel() * parameter.element_size() for parameter in whole.parameters()) / 2**20
    trained = sum(parameter.numel() * parameter.element_size() for parameter in whole.trainable_parameters()) / 2**20
    for row in rows:
        # a bias of one entry has no half
        assert held / 2 <= row["memory/parameters_mib"] < 0.55 * held
        assert trained <= row["memory/optimizer_mib"] < 1.1 * trained  # two moments, half of each
        assert row["memory/peak_mib"] > row["memory/parameters_mib"]


def test_a_sharded_policy_is_gathered_twice_a_pass_and_its_gradient_scattered_once(outcome: Outcome) -> None:
    for rank in outcome.ranks:
        counted, held = rank["communication"], rank["communication"]["parameters"]["all"]
        passes = 2  # an epoch of one micro-batch on each rank, twice
        update = counted["update"]
        padding = 1.01  # a bias of one entry
        assert 2 * passes * held <= update["all_gather_parameters"] <= padding * 2 * passes * held
        assert passes * held <= update["reduce_scatter"] <= padding * passes * held
        assert update["all_reduce"] + update["all_gather"] < A_FEW_NUMBERS
        # the direction is gathered once for each scoring pass, as the parameters are
        assert counted["filter"]["all_gather_direction"] == counted["parameters"]["policy"]


@pytest.mark.slow
def test_gathering_once_or_for_every_token_is_the_same_run(slow_outcome: Outcome) -> None:
    logs = [(slow_outcome.folder / name / "history.jsonl").read_text().splitlines() for name in ("whole", "layerwise")]
    for one, other in zip(*logs, strict=True):
        rows = [json.loads(line) for line in (one, other)]
        of_machine = {name for name in rows[0] if name.startswith(("time/", "memory/peak"))}
        assert {name: rows[0][name] for name in rows[0].keys() - of_machine} == {
            name: rows[1][name] for name in rows[1].keys() - of_machine
        }


def test_a_rank_whose_responses_have_ended_samples_until_the_others_have(outcome: Outcome) -> None:
    first, second = (rank["sampled"] for rank in outcome.ranks)
    assert first["tokens"] != second["tokens"]
    assert max(first["tokens"], second["tokens"]) < 40
    assert first["same"]
    assert second["same"]
    assert first["as_asked"]
    every_token, once = first["gathered"]
    assert once == 1.0
    assert every_token == max(first["tokens"], second["tokens"])


@pytest.mark.parametrize(
    ("kept", "steps"),
    [((3, 0), 2), ((0, 0), 0), ((1, 16), 6)],
    ids=["one rank keeps nothing", "nobody keeps anything", "one against sixteen"],
)
def test_ranks_that_keep_different_numbers_take_the_same_steps(
    outcome: Outcome, kept: tuple[int, int], steps: int
) -> None:
    for rank in outcome.ranks:
        assert rank[f"kept_{kept[0]}_{kept[1]}"] == {"optimizer_steps": steps, "changed": steps > 0}


def test_supervised_training_of_a_sharded_policy_equals_that_of_a_full_one(outcome: Outcome, tmp_path: Path) -> None:
    whole = two_ranks.sft_step(tmp_path, Fabric(accelerator="cpu", devices=1), list(range(10)))
    for half in outcome.tensors("sft"):
        for name, parameter in whole.items():
            torch.testing.assert_close(half[name], parameter, rtol=0, atol=EXACT)


@pytest.mark.parametrize("what", ["quantization", "optimizer"])
def test_what_cannot_be_sharded_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, strategy=ShardedStrategy())
    if what == "quantization":
        base = two_ranks.nf4_base(tmp_path)
        tokenizer = tiny_policy().tokenizer
        policy = CausalLMPolicy(pretrained=str(base), lora=LoraSettings(r=1), quantization="int8", tokenizer=tokenizer)
        module, complaint = tiny_module(policy=policy), "fsdp2 cannot shard the 8-bit weights"
    else:
        module = tiny_module(optimizer=OptimizerSettings(kind="adamw_8bit"))
        complaint = "optimizer.kind: adamw_8bit does not support sharded parameters; use adamw"
    with pytest.raises(UserError, match=complaint):
        tiny_loop(tmp_path / "run", module, fabric=fabric, **RUN).fit()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
