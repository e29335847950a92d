"""A trace has the probabilities of the run's own parameters, and scores that are inner products of gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from experiment_files import TINY
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import one_hot
from traced_runs import ITERATIONS, STEPS, lake_run, repeated, text_run

from ippo_lightning.analysis import RepeatedRounds, read_round
from ippo_lightning.analysis.behaviour_choice import choose_behaviour
from ippo_lightning.analysis.behaviour_words import NamedPair, NamedRecord, NamedResponse, NamedTransition
from ippo_lightning.analysis.behaviours import RecordLogProb, find_behaviour
from ippo_lightning.analysis.row_passes import embeddings_of
from ippo_lightning.analysis.trace_page import numbers_of
from ippo_lightning.analysis.traced_rounds import (
    Trace,
    TraceOptions,
    chosen_iterations,
    shown_rounds,
    trace_behaviour,
)
from ippo_lightning.errors import UserError
from ippo_lightning.records import ControlEpisodes, TextEpisodes, UpdatePlan
from ippo_lightning.selection import ActionLogProb, RoundScores

FP32 = 1e-5
STATE, ACTION = 4, 1


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RepeatedRounds]:
    run = lake_run(tmp_path_factory.mktemp("runs"))
    return run, repeated(run)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RepeatedRounds]:
    run = text_run(tmp_path_factory.mktemp("runs"), config=dict(TINY))
    return run, repeated(run)


def traced(given: tuple[Path, RepeatedRounds], named: Any, *, scores: Any = "round", **changes: Any) -> Trace:
    run, rounds = given
    iterations = chosen_iterations(run, first=None, last=None, every=1)
    options = {"iterations": iterations, "scores": scores, "neighbours": 20, "top": 10, "seed": 0}
    return trace_behaviour(rounds, run, named=named, options=TraceOptions(**{**options, **changes}))


def probability(parameters: Any, state: int, action: int) -> float:
    """Of an action, by the layers of the actor and nothing of the library."""
    found = one_hot(torch.tensor(state), 16).float()
    for layer in ("actor.0.1", "actor.0.3"):
        found = torch.tanh(parameters[f"{layer}.weight"] @ found + parameters[f"{layer}.bias"])
    return float((parameters["actor.1.weight"] @ found + parameters["actor.1.bias"]).softmax(-1)[action])


def test_the_curve_is_that_of_the_runs_own_parameters(lake: tuple[Path, RepeatedRounds]) -> None:
    found = traced(lake, NamedPair(observation=STATE, action=ACTION)).values
    kept = [
        {name.removeprefix("policy."): value for name, value in read_round(lake[0], iteration).parameters.items()}
        for iteration in range(ITERATIONS)
    ]
    final = load_file(lake[0] / "model" / "policy.safetensors")
    expected = [probability(parameters, STATE, ACTION) for parameters in [*kept, final]]
    assert found == pytest.approx(expected, abs=FP32)
    assert len({round(value, 4) for value in found}) == ITERATIONS + 1


def row_scores(lake: tuple[Path, RepeatedRounds], iteration: int) -> Tensor:
    """One gradient per record of the loss that the only step of the update has, against that of log pi."""
    module = lake[1].module
    rows: Any = lake[1].begin(read_round(lake[0], iteration)).episodes
    parameters = [p for name, p in module.policy.named_parameters() if name.startswith("actor")]
    advantages = rows.advantages[:, 0]
    unit = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
    network = module.policy.actor
    target = network(one_hot(torch.tensor([STATE]), 16).float()).log_softmax(-1)[0, ACTION]
    direction = torch.autograd.grad(target, parameters)
    found = []
    for row in range(len(rows)):
        outputs = network(one_hot(rows.observations[row], 16).float()).log_softmax(-1)
        gain = unit[row] * outputs[0, rows.actions[row, 0]]
        gradient = torch.autograd.grad(gain, parameters)
        found.append(sum((a * b).sum() for a, b in zip(gradient, direction, strict=True)))
    return torch.stack([torch.as_tensor(one) for one in found]).double()


@pytest.mark.parametrize(
    ("scores", "divisor"),
    # A minibatch has a mean over its rows, and divides advantages by their unbiased deviation.
    [("start", 1.0), ("round", STEPS * (STEPS / (STEPS - 1)) ** 0.5)],
)
def test_scores_are_those_of_one_gradient_per_record(
    lake: tuple[Path, RepeatedRounds], scores: str, divisor: float
) -> None:
    found = traced(lake, NamedPair(observation=STATE, action=ACTION), scores=scores)
    for one in found.rounds:
        expected = row_scores(lake, one.iteration) / divisor
        torch.testing.assert_close(one.scores, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
        positive = (expected > 0).nonzero().flatten()
        assert set(one.positive.tolist()) == set(positive.tolist())
        assert one.top.tolist() == one.scores.argsort(descending=True, stable=True)[:10].tolist()
        assert torch.equal(
            one.records.outcome_rewards, read_round(lake[0], one.iteration).episodes.outcome_rewards[one.top]
        )


def test_the_target_is_that_of_the_filter(lake: tuple[Path, RepeatedRounds]) -> None:
    run, rounds = lake
    round_ = read_round(run, 1)
    found = []
    behaviour = find_behaviour(NamedPair(observation=STATE, action=ACTION), module=rounds.module, folder=run,
                               like=round_.episodes)  # fmt: skip
    for target in (RecordLogProb(record=behaviour.record), ActionLogProb(observation=[STATE], action=[ACTION])):
        on_device = rounds.begin(round_)
        scores = RoundScores(rounds.module, target=target, plan=on_device.plan())
        rounds.update(on_device, scores.plan, stages=scores)
        found.append(scores.scores)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_without_a_name_the_record_that_rose_most_is_traced(lake: tuple[Path, RepeatedRounds]) -> None:
    # Backwards, because what rose most since the beginning is also most probable at the end.
    first, last = (read_round(lake[0], iteration) for iteration in (ITERATIONS - 1, 0))
    found = choose_behaviour(lake[1], first, last)
    rows: Any = last.episodes
    pairs = list(zip(rows.observations[:, 0].tolist(), rows.actions[:, 0].tolist(), strict=True))
    often = {pair for pair in pairs if pairs.count(pair) >= 2}
    parameters = [
        {name.removeprefix("policy."): value for name, value in one.parameters.items()} for one in (first, last)
    ]
    rises = {pair: probability(parameters[1], *pair) - probability(parameters[0], *pair) for pair in often}
    record: Any = found.record
    assert (int(record.observations), int(record.actions)) == max(rises, key=rises.__getitem__)
    most_probable = max(often, key=lambda pair: probability(parameters[1], *pair))
    assert most_probable != max(rises, key=rises.__getitem__), "the run tells both choices apart"
    assert f"compared were the {len(often)} kinds that make up at least 1 % of its records" in found.origin


def test_embeddings_are_those_before_the_last_layer(lake: tuple[Path, RepeatedRounds]) -> None:
    module = lake[1].module
    rows: Any = read_round(lake[0], 0).episodes
    with torch.no_grad():
        found = embeddings_of(module, rows)
        outputs = module.policy.actor[-1](found)
        expected = module.policy.actor(one_hot(rows.observations[:, 0], 16).float())
    torch.testing.assert_close(outputs, expected, rtol=0, atol=FP32)


@pytest.mark.parametrize("named", [NamedRecord(iteration=1, row=3), "the same as a file"], ids=["record", "file"])
def test_a_kept_record_is_a_behaviour(lake: tuple[Path, RepeatedRounds], named: Any) -> None:
    run, rounds = lake
    rows: Any = read_round(run, 1).episodes
    if isinstance(named, str):
        named = NamedTransition(observation=(float(rows.observations[3]),), action=(float(rows.actions[3]),))
    record: Any = find_behaviour(named, module=rounds.module, folder=run, like=rows).record
    assert isinstance(record, ControlEpisodes)
    assert torch.equal(record.observations, rows.observations[3:4])
    assert torch.equal(record.actions, rows.actions[3:4])


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (NamedPair(observation=16, action=1), "behaviour: observation 16 does not exist; expected 0 to 15"),
        (NamedPair(observation=1, action=4), "behaviour: action 4 does not exist; expected 0 to 3"),
        (NamedRecord(iteration=1, row=STEPS), f"behaviour: row {STEPS} of iteration 1 does not exist; expected 0 to"),
        (NamedRecord(iteration=9, row=0), "iteration: 9 was not kept"),
        (NamedTransition(observation=(1.0, 2.0), action=(1.0,)), "observation has 2 numbers; expected 1"),
        (NamedTransition(observation=(1.0,), action=(7.0,)), "behaviour: action 7 does not exist; expected 0 to 3"),
        (NamedTransition(observation=(99.0,), action=(1.0,)), "observation 99 does not exist; expected 0 to 15"),
        (NamedTransition(observation=(-1.0,), action=(1.0,)), "observation -1 does not exist; expected 0 to 15"),
        (NamedTransition(observation=(14.5,), action=(1.0,)), "observation 14.5 does not exist; expected 0 to 15"),
        (NamedTransition(observation=(1.0,), action=(1e30,)), "action 1e+30 does not exist; expected 0 to 3"),
        (NamedResponse(prompt="a", response="b"), "a prompt and a response are for language models"),
    ],
    ids=[
        "observation",
        "action",
        "row",
        "iteration",
        "shape",
        "action of a file",
        "too large",
        "negative",
        "between",
        "huge",
        "text",
    ],
)
def test_a_behaviour_that_does_not_fit_is_one_line(lake: tuple[Path, RepeatedRounds], named: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        find_behaviour(named, module=lake[1].module, folder=lake[0], like=read_round(lake[0], 0).episodes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("first", "last", "every", "expected"),
    [(None, None, 1, (0, 1, 2)), (1, None, 1, (1, 2)), (None, 1, 1, (0, 1)), (None, None, 2, (0, 2))],
)
def test_bounds_choose_iterations(
    lake: tuple[Path, RepeatedRounds], first: Any, last: Any, every: int, expected: tuple[int, ...]
) -> None:
    assert chosen_iterations(lake[0], first=first, last=last, every=every) == expected


def test_bounds_without_an_iteration_are_one_line(lake: tuple[Path, RepeatedRounds]) -> None:
    with pytest.raises(UserError, match=r"^first: no iteration from 7 to 9 was kept; the run kept 0 to 2$"):
        chosen_iterations(lake[0], first=7, last=9, every=1)


def test_a_response_of_a_language_model_is_traced(texts: tuple[Path, RepeatedRounds]) -> None:
    rows: Any = read_round(texts[0], 1).episodes
    found = traced(texts, NamedRecord(iteration=1, row=0), scores="start")
    kept = rows.select([0])
    # The rollout of iteration 1 has stored what the parameters at its beginning give.
    expected = (kept.log_probs.sum() / kept.mask.sum()).exp()
    assert found.values[1] == pytest.approx(float(expected), abs=FP32)
    assert found.behaviour.measure == "probability per token"
    assert any(len(one.positive) for one in found.rounds)
    text = numbers_of(found, run="run", command="")["iterations"][1]["top"][0]
    assert text["response"] == rows.responses[text["row"]]


def test_a_written_response_has_the_probability_of_demonstrations(texts: tuple[Path, RepeatedRounds]) -> None:
    run, rounds = texts
    named = NamedResponse(prompt="7+12?", response="7+12=19;#19")
    rows = read_round(run, 0).episodes
    behaviour = find_behaviour(named, module=rounds.module, folder=run, like=rows)
    assert isinstance(behaviour.record, TextEpisodes)
    loss = RecordLogProb(record=behaviour.record).loss(rounds.module, UpdatePlan(episodes=rows))
    with torch.no_grad():
        found = loss.loss(rounds.module, loss.batches[0]) / behaviour.record.mask.sum()
        expected = rounds.module.validation_loss({"prompts": [named.prompt], "responses": [named.response]})
    torch.testing.assert_close(found, expected, rtol=0, atol=FP32)


def test_embeddings_of_responses_are_means_over_their_tokens(texts: tuple[Path, RepeatedRounds]) -> None:
    run, rounds = texts
    rows: Any = read_round(run, 0).episodes
    found = embeddings_of(rounds.module, rows)
    row, network = 5, rounds.module.policy.language_model
    ids = torch.cat([rows.prompt_ids[row][rows.prompt_mask[row]], rows.response_ids[row][rows.mask[row]]])
    with torch.no_grad():
        states = network(input_ids=ids[None], output_hidden_states=True).hidden_states[-1][0]
    expected = states[-int(rows.mask[row].sum()) :].mean(dim=0)
    torch.testing.assert_close(found[row], expected, rtol=0, atol=FP32)


def test_shown_iterations_are_spread_over_the_parts(lake: tuple[Path, RepeatedRounds]) -> None:
    found = traced(lake, NamedPair(observation=STATE, action=ACTION))
    assert [one.iteration for one in shown_rounds(found, 4)] == [0, 1, 2]
    assert len(shown_rounds(found, 2)) == 2
