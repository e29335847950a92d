"""Targets from the rollout itself: each is its formula, and a row's own part is left out exactly, as if by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from training_parts import prepared, same, tiny_data, tiny_loop, tiny_module, trainable
from two_ranks_select import Policy, rollout

from ippo_lightning.callbacks import InfluenceFilter, ScoringSettings
from ippo_lightning.errors import UserError
from ippo_lightning.records import UpdatePlan
from ippo_lightning.selection import AverageReward, Demonstrations, LeaveOneOutMean, ReturnOfBuffer, SequenceReturn
from ippo_lightning.selection import Target as AnyTarget

COUNT = 8
FLOAT64 = 1e-12
DROPPED = 3
"""A row that another callback has dropped: it is scored, and in no target."""


def flat(loss: Tensor, module: torch.nn.Module) -> Tensor:
    found = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
    return torch.cat([part.flatten() for part in found])


def log_probs_of(module: Any, episodes: Any) -> Tensor:
    return torch.where(episodes.mask, module.score(episodes).log_probs, 0.0)


def minus_return(module: Any, episodes: Any, rows: list[int]) -> Tensor:
    """- sum of A * log pi over the rows / number of their actions."""
    terms = log_probs_of(module, episodes) * episodes.advantages
    return -terms[rows].sum() / episodes.mask[rows].sum()


def minus_return_of_now(module: Any, episodes: Any, rows: list[int]) -> Tensor:
    """The same, each action times its probability now over that in the rollout."""
    ratios = (module.score(episodes).log_probs.detach() - episodes.log_probs).exp()
    return minus_return(module, episodes.evolve(advantages=episodes.advantages * ratios), rows)


def minus_reward(module: Any, episodes: Any, rows: list[int]) -> Tensor:
    """- mean of z * log pi(y|x) over the rows; z over the rows that are not dropped."""
    rewards = episodes.outcome_rewards
    kept = rewards[[row for row in range(COUNT) if row != DROPPED]]
    z = (rewards - kept.mean()) / (kept.var(unbiased=False) + 1e-8).sqrt()
    return -(z * log_probs_of(module, episodes).sum(dim=1))[rows].mean()


def mean_loss(module: Any, episodes: Any, rows: list[int]) -> Tensor:
    losses: Tensor = module.episode_losses(episodes)[rows].mean()
    return losses


TARGETS: dict[str, tuple[AnyTarget, Callable[..., Tensor]]] = {
    "return": (ReturnOfBuffer(leave_out_self=True, max_tokens=15), minus_return),
    "return with self": (ReturnOfBuffer(), minus_return),
    "return of now": (ReturnOfBuffer(leave_out_self=True, importance=True), minus_return_of_now),
    "reward": (AverageReward(leave_out_self=True), minus_reward),
    "reward with self": (AverageReward(max_tokens=15), minus_reward),
    "mean of the others": (LeaveOneOutMean(), mean_loss),
}


def filtered(target: AnyTarget, module: Any, episodes: Any, **scoring: Any) -> Tensor:
    plan = UpdatePlan(episodes=episodes)
    plan.drop(torch.arange(len(episodes)) == DROPPED, reason="another")
    InfluenceFilter(target=target, monitor_only=True, scoring=ScoringSettings(**scoring)).on_rollout_end(
        None, module, plan
    )
    scores = plan.history[-1].scores
    assert scores is not None
    return scores


@pytest.mark.parametrize("scoring", [{}, {"method": "per_episode"}, {"normalise": "length"}, {"exclude": ["*bias"]}])
@pytest.mark.parametrize("name", TARGETS)
def test_a_score_is_the_product_with_the_target_of_the_other_rows(name: str, scoring: dict[str, Any]) -> None:
    module, episodes = Policy(), rollout(list(range(COUNT)))
    if "exclude" in scoring:  # what does not count for a score does not count for its own part either
        scoring = {"exclude": ["actor.bias"]}
    target, loss = TARGETS[name]
    losses = module.episode_losses(episodes)
    expected = torch.zeros(COUNT, dtype=torch.float64)
    for row in range(COUNT):
        left_out = {DROPPED, row} if target.leaves_out_self else {DROPPED}
        others = [other for other in range(COUNT) if other not in left_out]
        mine, theirs = flat(losses[row], module), flat(loss(module, episodes, others), module)
        counts = slice(None, -3) if "exclude" in scoring else slice(None)  # the bias has 3 entries
        expected[row] = mine[counts] @ theirs[counts]
    if scoring.get("normalise") == "length":
        expected /= episodes.lengths
    found = filtered(target, module, episodes, **scoring)
    torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT64)


@pytest.mark.parametrize("target", [ReturnOfBuffer(leave_out_self=True), LeaveOneOutMean()])
def test_without_its_own_part_a_row_alone_in_its_target_scores_zero(target: AnyTarget) -> None:
    module, episodes = Policy(), rollout([0, 1])
    plan = UpdatePlan(episodes=episodes)
    plan.drop(torch.tensor([True, False]), reason="another")
    InfluenceFilter(target=target, monitor_only=True).on_rollout_end(None, module, plan)
    scores = plan.history[-1].scores
    assert scores is not None
    assert float(scores[1]) == 0
    assert float(scores[0]) != 0, "the other row is in its target"


def test_the_own_part_is_scaled_as_the_target_is_under_adam(tmp_path: Path) -> None:
    module = tiny_module()
    tiny_loop(tmp_path / "run", module, max_iterations=1).fit()  # leaves Adam with a state
    module.policy.double()
    torch.manual_seed(2)
    episodes: Any = prepared(module, num_prompts=2)
    # at 0 the rewards have no variance, and scores would be of rounding
    episodes = episodes.evolve(outcome_rewards=torch.arange(len(episodes)).double())
    found = filtered(AverageReward(leave_out_self=True), module, episodes, adam_aware=True)
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    group = module.optimizers().param_groups[0]  # type: ignore[union-attr]
    states = module.optimizers().state  # type: ignore[union-attr]

    def gradient(loss: Tensor) -> dict[str, Tensor]:
        found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), found, strict=True)}

    def scale(parameter: Any) -> Any:
        state = states[parameter]
        corrected = state["exp_avg_sq"].double() / (1 - group["betas"][1] ** float(state["step"]))
        return 1 / (corrected.sqrt() + group["eps"])

    kept = [row for row in range(len(episodes)) if row != DROPPED]
    rewards = episodes.outcome_rewards
    z = (rewards - rewards[kept].mean()) / (rewards[kept].var(unbiased=False) + 1e-8).sqrt()
    terms, losses = -(z * log_probs_of(module, episodes).sum(dim=1)), module.episode_losses(episodes)
    for row in range(len(episodes)):
        others = [other for other in kept if other != row]
        mine, theirs = gradient(losses[row]), gradient(terms[others].mean())
        with_state = [name for name, p in parameters.items() if p in states]
        assert all(float(mine[name].abs().sum()) == 0 for name in parameters if name not in with_state)
        expected = sum(float((scale(parameters[n]) * mine[n] * theirs[n]).sum()) for n in with_state)
        assert float(found[row]) == pytest.approx(expected, rel=1e-6, abs=1e-6 * float(found.abs().max()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scoring": ScoringSettings(method="forward")}, r"scoring.method: forward, and LeaveOneOutMean leaves a row"),
        ({"scoring": ScoringSettings(normalise="cosine")}, r"scoring.normalise: cosine, .*; use none or length"),
        ({"scoring": ScoringSettings(refresh_every_n_iterations=2)}, r"refresh_every_n_iterations: 2, .* set it to 1"),
        ({"drop_when": "all"}, r"InfluenceFilter.drop_when: all, and LeaveOneOutMean .*; use mean"),
    ],
)
def test_settings_that_do_not_allow_to_leave_a_row_out_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        InfluenceFilter(target=LeaveOneOutMean(), **changes)
    InfluenceFilter(target=ReturnOfBuffer(), **changes)
    InfluenceFilter(rule="reward", target=LeaveOneOutMean(), **{n: v for n, v in changes.items() if n == "scoring"})


def test_micro_batches_that_share_a_target_do_not_allow_it_either() -> None:
    plan = UpdatePlan(episodes=rollout(list(range(COUNT))))
    selector = InfluenceFilter(target=LeaveOneOutMean()).selector
    with pytest.raises(UserError, match="gradient accumulation does not allow to leave a row out of its own target"):
        selector.change(plan, module=Policy(), trainer=None, iteration=0, part=0)


def test_rewards_of_transitions_and_of_other_responses_are_refused() -> None:
    with pytest.raises(UserError, match=r"target.leave_out_self: true, and the target is made from other responses"):
        AverageReward(prompts="validation", leave_out_self=True)
    with pytest.raises(UserError, match=r"target.num_prompts: 0 is out of range"):
        SequenceReturn(num_prompts=0)
    with pytest.raises(UserError, match=r"AverageReward needs the reward of an episode, and the rows are transitions"):
        AverageReward().loss(Policy(), UpdatePlan(episodes=rollout([0, 1]).transitions()))
    with pytest.raises(UserError, match=r"SequenceReturn needs the method plan_rollout of Policy"):
        SequenceReturn().loss(Policy(), UpdatePlan(episodes=rollout([0, 1])))


def test_the_mean_of_the_others_reads_the_losses_that_are_scored_also_of_a_foreign_buffer() -> None:
    model = torch.nn.Linear(3, 1).double()
    buffer = {"x": torch.randn(5, 3, dtype=torch.float64), "weights": torch.ones(5, dtype=torch.float64)}

    def losses(module: Any, rows: Any) -> Tensor:
        squares: Tensor = module(rows["x"]).squeeze(1).square()
        return squares

    callback = InfluenceFilter(target=LeaveOneOutMean(), episode_losses=losses)
    plan = callback.apply(model, buffer)
    found = losses(model, buffer)
    mine = torch.stack([flat(one, model) for one in found])
    products = mine @ mine.T
    expected = (products.sum(dim=1) - products.diagonal()) / 4
    scores = plan.history[0].scores
    assert scores is not None
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("target", [SequenceReturn(num_prompts=3), AverageReward(prompts="validation", num_prompts=3)])
def test_fresh_responses_leave_the_run_as_it_was_and_differ_in_the_next_iteration(target: Any) -> None:
    module, data = tiny_module(), tiny_data()
    data.setup()
    trainer, plan = SimpleNamespace(datamodule=data), UpdatePlan(episodes=prepared(module))
    module.reward.last_parts = {"part": torch.ones(2)}
    before = torch.get_rng_state()
    first, again = (target.loss(module, plan, trainer=trainer) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert list(module.reward.last_parts) == ["part"], "the log shows the rewards of the rollout"
    prompts = next(iter(data.val_dataloader()))["prompts"][:3]
    rows = first.batches[0]
    assert sorted(set(rows.prompts)) == sorted(set(prompts))
    assert len(rows) == 3 * module.sampling.num_responses
    assert torch.equal(rows.response_ids, again.batches[0].response_ids), "a resumed iteration samples the same"
    module.iteration += 1
    assert target.loss(module, plan, trainer=trainer).batches[0].responses != rows.responses
    log_probs = log_probs_of(module, rows).sum(dim=1)
    if isinstance(target, SequenceReturn):
        last = [int(row.nonzero().max()) for row in rows.mask]
        factors = rows.advantages[torch.arange(len(rows)), last]
    else:
        rewards = rows.outcome_rewards.double()
        factors = (rewards - rewards.mean()) / (rewards.var(unbiased=False) + 1e-8).sqrt()
    expected = -(factors * log_probs).mean()
    torch.testing.assert_close(first.loss(module, rows), expected.float(), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="needs validation prompts, and a run without a data module has no val_data"):
        target.loss(module, plan)
    trainer = SimpleNamespace(datamodule=SimpleNamespace(val_dataloader=lambda: [{"seeds": [1]}]))
    with pytest.raises(UserError, match=r"SimpleNamespace.val_dataloader\(\) has no column prompts"):
        target.loss(module, plan, trainer=trainer)
    trainer = SimpleNamespace(datamodule=SimpleNamespace(val_dataloader=list))
    with pytest.raises(UserError, match=r"needs a validation prompt for each rank, and .* give 0 prompts"):
        target.loss(module, plan, trainer=trainer)


@pytest.mark.parametrize(
    ("target", "score_at", "times"),
    [
        (SequenceReturn(num_prompts=3), "rollout_end", 1),
        (AverageReward(prompts="validation", num_prompts=3), "minibatch", 2),
        (AverageReward(), "rollout_end", None),
    ],
)
def test_responses_that_are_sampled_for_a_target_alone_are_counted(target: Any, score_at: Any, times: int | None,
                                                                   tmp_path: Path) -> None:  # fmt: skip
    module = tiny_module()
    loop = tiny_loop(tmp_path, module, callbacks=[InfluenceFilter(target=target, score_at=score_at)], max_iterations=1)
    loop.fit()
    (line,) = (tmp_path / "history.jsonl").read_text(encoding="utf-8").splitlines()
    numbers = json.loads(line)
    steps = numbers["update/optimizer_steps"]
    assert steps > 1 or times != 2
    expected = None if times is None else 3 * module.sampling.num_responses * (steps if times == 2 else 1)
    assert numbers.get("influence/target_episodes") == expected
    assert numbers["progress/episodes"] == numbers["rollout/episodes"]


@pytest.mark.slow
@pytest.mark.parametrize("target", [SequenceReturn(num_prompts=3), LeaveOneOutMean()], ids=["fresh", "others"])
def test_a_resumed_run_is_the_unbroken_one(target: Any, tmp_path: Path) -> None:
    def run(folder: Path, iterations: int, **changes: Any) -> dict[str, Tensor]:
        module = tiny_module()
        callbacks = [InfluenceFilter(target=target)]
        tiny_loop(folder, module, callbacks=callbacks, max_iterations=iterations, **changes).fit()
        return trainable(module)

    whole = run(tmp_path / "whole", 2)
    run(tmp_path / "parts", 1)
    assert same(whole, run(tmp_path / "parts", 2, resume=True))
    assert not same(whole, run(tmp_path / "other", 2, seed=6))


def test_demonstrations_leave_nothing_out() -> None:
    assert not Demonstrations().leaves_out_self
