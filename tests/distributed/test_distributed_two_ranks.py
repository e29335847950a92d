"""Two gloo processes: the same answer as one process, different rollouts, and nobody waits for ever."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import torch
import two_ranks
from critic_free import ALGORITHMS
from launching import Outcome, outcome_of, run_on_two_ranks
from lightning.fabric import Fabric
from training_parts import tiny_loop

from ippo_lightning.storage.run_folder import finite

A_FEW_NUMBERS = 4096
"""Bytes: scores, counts, metrics, decisions, and the episodes that change ranks."""
START_UP = 30
"""Seconds that imports take at the most."""
FLOAT32 = 1e-6
"""Weights are float32, around one."""
FLOAT32_STEPS = 1e-5
"""Parameters after two Adam steps of 1e-3 in float32, whose direction amplifies rounding of small gradients."""
EXACT = 1e-10
"""fp64: the two sides add the same numbers in another order."""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return outcome_of(Path(two_ranks.__file__), tmp_path_factory)


@pytest.mark.slow  # torchrun waits half a minute before it kills a process that is stopped
@pytest.mark.parametrize("signal", ["SIGKILL", "SIGSTOP"])
def test_where_a_rank_dies_or_stops_the_others_end_and_say_which(signal: str, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(AssertionError) as failed:
        run_on_two_ranks(Path(two_ranks.__file__).with_name("rank_dies.py"), tmp_path, signal)
    assert time.monotonic() - start < 60 + START_UP or signal == "SIGSTOP"  # `run_on_two_ranks` has a limit, too
    said = str(failed.value)
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    if signal == "SIGKILL":
        assert re.search(r"rank\s*:\s*1", said), said  # torchrun's summary
        assert "rank 0 lost another: True" in log or "SIGTERM" in log, log[-2000:]  # torchrun may be quicker than gloo
    else:
        assert "rank 0 lost another: True" in log, log[-2000:]
    checkpoints = sorted(path.name for path in (tmp_path / "dies" / "checkpoints").iterdir())
    assert checkpoints == ["iteration_0000002.ckpt", "last.ckpt"]


def test_each_rank_rolls_out_its_own_episodes_and_again_the_same_ones(outcome: Outcome) -> None:
    first, second = (rank["response_ids"] for rank in outcome.ranks)
    assert first[0] != second[0]
    assert first[0] == first[1]
    assert second[0] == second[1]


def test_both_ranks_hold_the_same_parameters_after_a_run(outcome: Outcome) -> None:
    for name in ("run", "again", "kept_3_0", "kept_0_0", "kept_1_16"):
        first, second = outcome.tensors(name)
        assert all(torch.equal(first[key], second[key]) for key in first), name


def test_a_run_on_two_ranks_repeats_bit_by_bit(outcome: Outcome) -> None:
    first, again = outcome.tensors("run")[0], outcome.tensors("again")[0]
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_an_evaluation_gives_both_ranks_the_numbers_of_all_prompts(outcome: Outcome) -> None:
    first, second = ({name: finite(value) for name, value in rank["run"].items()} for rank in outcome.ranks)
    assert first == second
    results = json.loads((outcome.folder / "run" / "results.json").read_text(encoding="utf-8"))
    assert results["num_prompts"] == 4
    assert {name: results[name] for name in first} == first
    counts = json.loads((outcome.folder / "run" / "test_prompts.json").read_text(encoding="utf-8"))
    assert len(counts["samples"]) == 4
    assert sum(counts["correct"]) / sum(counts["samples"]) == results["exact_match"]


@pytest.mark.parametrize(
    ("kept", "steps", "share"),
    [((3, 0), 2, 3 / 32), ((0, 0), 0, 0.0), ((1, 16), 6, 17 / 32)],
    ids=["one rank keeps nothing", "nobody keeps anything", "one against sixteen"],
)
def test_ranks_that_keep_different_numbers_take_the_same_steps(
    outcome: Outcome, kept: tuple[int, int], steps: int, share: float
) -> None:
    first, second = (rank[f"kept_{kept[0]}_{kept[1]}"] for rank in outcome.ranks)
    assert first == second
    assert first == {"optimizer_steps": steps, "kept_fraction": share, "changed": steps > 0}


def test_a_mistake_that_only_the_writing_rank_can_see_ends_both(outcome: Outcome) -> None:
    for rank in outcome.ranks:
        assert "already contains a run" in rank["mistake"]


@pytest.mark.parametrize("denominator", ["all", "kept"])
@pytest.mark.parametrize("reduction", ["episode_mean", "token_mean"])
def test_two_ranks_on_halves_equal_one_rank_on_the_whole(
    outcome: Outcome, reduction: str, denominator: str, tmp_path: Path
) -> None:
    module = two_ranks.exact_module(loss_reduction=reduction, denominator=denominator)
    buffer = two_ranks.whole_buffer(module)
    start = two_ranks.trainable(module)
    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    loop = tiny_loop(tmp_path, module, fabric=fabric)
    loop.set_up()
    rows = list(range(len(buffer)))
    weights = two_ranks.filter_rows(loop, module, buffer, rows)
    whole = two_ranks.update_rows(module, buffer, rows)
    halves = outcome.tensors(f"halves.{reduction}.{denominator}")
    # whitening and the mean kept score are over all ranks: what the halves see is what the whole sees
    advantages = whole.pop("advantage_sums")
    for rank, half in enumerate(halves):
        torch.testing.assert_close(half.pop("advantage_sums"), advantages[rank::2], rtol=0, atol=EXACT)
        torch.testing.assert_close(half.pop("weights"), weights[rank::2], rtol=0, atol=FLOAT32)
        for name, parameter in whole.items():
            assert parameter.dtype == torch.float64
            torch.testing.assert_close(half[name], parameter, rtol=0, atol=EXACT)
    assert 0 < int((weights > 0).sum()) < len(weights)
    assert any(not torch.equal(start[name], parameter) for name, parameter in whole.items())


@pytest.mark.parametrize("reduction", ["episode_mean", "token_mean"])
def test_layers_that_choose_their_rows_on_two_ranks_choose_and_learn_as_on_one(
    outcome: Outcome, reduction: str, tmp_path: Path
) -> None:
    module = two_ranks.exact_module(loss_reduction=reduction)
    buffer = two_ranks.whole_buffer(module)
    loop = tiny_loop(tmp_path, module, fabric=Fabric(accelerator="cpu", devices=1, precision="64-true"))
    loop.set_up()
    whole = two_ranks.layer_rows(loop, module, buffer, list(range(len(buffer))))
    assert 0 < float(whole["kept"][1]) < float(whole["kept"][0]) < 1
    for half in outcome.tensors(f"halves.layers.{reduction}"):
        for name, value in whole.items():
            torch.testing.assert_close(half[name], value, rtol=0, atol=FLOAT32 if name == "kept" else EXACT, msg=name)


@pytest.mark.parametrize(("kind", "allowed"), [("lora", EXACT), ("nf4", FLOAT32_STEPS)])
def test_an_adapter_on_two_ranks_equals_one_on_the_whole(
    outcome: Outcome, kind: str, allowed: float, tmp_path: Path
) -> None:
    module = two_ranks.adapter_module(kind, tmp_path)
    buffer = two_ranks.whole_buffer(module)
    start = two_ranks.trainable(module)
    fabric = Fabric(accelerator="cpu", devices=1, **({"precision": "64-true"} if kind == "lora" else {}))
    loop = tiny_loop(tmp_path / "run", module, fabric=fabric)
    loop.set_up()
    rows = list(range(len(buffer)))
    weights = two_ranks.filter_rows(loop, module, buffer, rows)
    whole = two_ranks.update_rows(module, buffer, rows)
    whole.pop("advantage_sums")
    for rank, half in enumerate(outcome.tensors(f"halves.{kind}")):
        half.pop("advantage_sums")
        torch.testing.assert_close(half.pop("weights"), weights[rank::2], rtol=0, atol=max(allowed, FLOAT32))
        for name, parameter in whole.items():
            torch.testing.assert_close(half[name], parameter, rtol=0, atol=allowed)
    assert any(not torch.equal(start[name], parameter) for name, parameter in whole.items())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_without_a_critic_on_two_ranks_equals_one_on_the_whole(
    outcome: Outcome, name: str, tmp_path: Path
) -> None:
    module = two_ranks.exact_critic_free(name)
    buffer = two_ranks.whole_buffer(module)
    start = two_ranks.trainable(module)
    loop = tiny_loop(tmp_path, module, fabric=Fabric(accelerator="cpu", devices=1, precision="64-true"))
    loop.set_up()
    rows = list(range(len(buffer)))
    weights = two_ranks.filter_rows(loop, module, buffer, rows)
    whole = two_ranks.update_rows(module, buffer, rows)
    advantages = whole.pop("advantage_sums")
    assert float(advantages.abs().max()) > 0
    for half, part in zip(outcome.tensors(f"halves.{name}"), torch.arange(len(buffer)).chunk(2), strict=True):
        torch.testing.assert_close(half.pop("advantage_sums"), advantages[part], rtol=0, atol=EXACT)
        torch.testing.assert_close(half.pop("weights"), weights[part], rtol=0, atol=FLOAT32)
        for parameter, value in whole.items():
            torch.testing.assert_close(half[parameter], value, rtol=0, atol=EXACT)
    assert any(not torch.equal(start[parameter], value) for parameter, value in whole.items())


def test_both_ranks_log_the_groups_of_both_and_leave_out_cut_responses(outcome: Outcome) -> None:
    first, second = (rank["groups"] for rank in outcome.ranks)
    for metric in ("rollout/truncated_fraction", "update/kept_fraction", "update/optimizer_steps"):
        assert first[metric] == second[metric]
    lines = (outcome.folder / "groups" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    logged = json.loads(lines[-1])["rollout/zero_variance_fraction"]
    assert logged == pytest.approx((first["equal"] + second["equal"]) / (first["all"] + second["all"]))
    assert 0 < first["update/kept_fraction"] <= 1 - first["rollout/truncated_fraction"]


KINDS = [("full", EXACT), ("lora", EXACT), ("nf4", FLOAT32_STEPS)]


@pytest.mark.parametrize(("kind", "allowed"), KINDS)
def test_plain_ppo_on_two_ranks_equals_one_on_the_whole(
    outcome: Outcome, kind: str, allowed: float, tmp_path: Path
) -> None:
    module = two_ranks.adapter_module(kind, tmp_path)
    buffer = two_ranks.whole_buffer(module)
    fabric = Fabric(accelerator="cpu", devices=1, **({} if kind == "nf4" else {"precision": "64-true"}))
    tiny_loop(tmp_path / "run", module, fabric=fabric).set_up()
    whole = two_ranks.update_rows(module, buffer, list(range(len(buffer))), keep_all=True)
    whole.pop("advantage_sums")
    for half in outcome.tensors(f"halves.ppo.{kind}"):
        for name, parameter in whole.items():
            torch.testing.assert_close(half[name], parameter, rtol=0, atol=allowed)


@pytest.mark.parametrize(("kind", "allowed"), KINDS)
def test_supervised_training_on_two_ranks_equals_one_on_the_whole(
    outcome: Outcome, kind: str, allowed: float, tmp_path: Path
) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, **({} if kind == "nf4" else {"precision": "64-true"}))
    whole = two_ranks.sft_step(tmp_path / "run", fabric, list(range(10)), kind=kind)
    for half in outcome.tensors(f"halves.sft.{kind}"):
        assert half.keys() == whole.keys()
        for name, parameter in whole.items():
            torch.testing.assert_close(half[name], parameter, rtol=0, atol=allowed)


def test_gradients_are_averaged_once_a_step_and_nothing_else_with_them(outcome: Outcome) -> None:
    """Four micro-batches a step, of which only the last synchronises: the bytes are those of one gradient a step."""
    for rank in outcome.ranks:
        counted = rank["gradients"]
        assert counted["bytes"] == counted["steps"] * counted["parameter_bytes"]
        assert counted["buckets"] >= counted["steps"]


def test_nothing_is_sent_but_one_direction_one_gradient_a_step_and_a_few_numbers(outcome: Outcome) -> None:
    for rank in outcome.ranks:
        counted = rank["communication"]
        least_of_filter, least_of_update = counted["parameters"]["all"], 2 * counted["parameters"]["all"]
        assert least_of_filter <= sum(counted["filter"].values()) < least_of_filter + A_FEW_NUMBERS
        assert least_of_update <= sum(counted["update"].values()) < least_of_update + A_FEW_NUMBERS
