"""Scores of a rollout of PPO's usual size are those of autograd, and of the definition in the code of IIF."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import one_hot

from ippo_lightning import ControlPPOModule
from ippo_lightning.callbacks import InfluenceFilter, ScoringSettings
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.engine.update import run_update
from ippo_lightning.errors import UserError
from ippo_lightning.modules import OptimizerSettings
from ippo_lightning.policies import MLP
from ippo_lightning.records import ControlEpisodes, UpdatePlan
from ippo_lightning.rollouts import EnvironmentSettings
from ippo_lightning.selection import ActionLogProb, DropNegatives, ReturnOfBuffer, RoundScores, Target

FP64 = 1e-9
RATE = 5e-3


def module_of(name: str, *, num_steps: int, epochs: int = 10) -> tuple[ControlPPOModule, ControlEpisodes]:
    """In float64; the rollout has advantages."""
    torch.manual_seed(0)
    module = ControlPPOModule(
        environment=EnvironmentSettings(id=name, options={"is_slippery": False} if "Lake" in name else {}),
        policy=MLP(hidden=[8, 8]),
        num_steps=num_steps,
        update=UpdateSettings(num_epochs=epochs, minibatch_size=64, max_grad_norm=0.5),
        optimizer=OptimizerSettings(kind="sgd", learning_rate=RATE),
    )
    module.policy.double()
    played = module.rollout(module.plan_rollout({"rollouts": 1}))
    if "Lake" in name:  # no reward is found by chance so soon
        played = played.evolve(rewards=torch.randn_like(played.rewards))
    return module, module.compute_advantages(played)


def scores_of(module: ControlPPOModule, rows: ControlEpisodes, target: Target) -> tuple[Tensor, UpdatePlan]:
    plan = UpdatePlan(episodes=rows)
    scoring = ScoringSettings(health_every_n_iterations=0)
    InfluenceFilter(rule=DropNegatives(fraction=0.5), target=target, scoring=scoring).on_rollout_end(None, module, plan)
    found = plan.history[0].scores
    assert found is not None
    return found.double(), plan


def parameters_of(module: ControlPPOModule) -> dict[str, Tensor]:
    return {name: value for name, value in module.policy.named_parameters() if not name.startswith("critic")}


def log_prob(module: ControlPPOModule, parameters: Mapping[str, Tensor], seen: Tensor, action: Tensor) -> Tensor:
    """Log-prob of actions in observations [..., features], without the module's own forward."""
    own = {name.removeprefix("actor."): value for name, value in parameters.items() if name.startswith("actor.")}
    outputs = functional_call(module.policy.actor, own, (seen.reshape(-1, seen.shape[-1]),))
    outputs = outputs.reshape(*seen.shape[:-1], outputs.shape[-1])
    if "log_std.weight" not in parameters:
        return outputs.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
    log_std = parameters["log_std.weight"][0]
    scaled = (action - outputs) / log_std.exp()
    return (-0.5 * scaled**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def seen_by_the_policy(rows: ControlEpisodes) -> Tensor:
    seen = rows.observations[:, 0]
    return (seen if seen.is_floating_point() else one_hot(seen, 16)).double()


def flat(gradients: Mapping[str, Tensor], *, rows: int) -> Tensor:
    return torch.cat([gradients[name].reshape(rows, -1) for name in sorted(gradients)], dim=1)


def row_gradients(module: ControlPPOModule, rows: ControlEpisodes, unit: Tensor, old: Tensor) -> Tensor:
    """The gradient of each row's clipped loss, by torch's per-sample gradients, shape [rows, parameters]."""

    def loss(parameters: Mapping[str, Tensor], seen: Tensor, action: Tensor, unit: Tensor, old: Tensor) -> Tensor:
        ratio = (log_prob(module, parameters, seen, action) - old).exp()
        return -torch.minimum(ratio * unit, ratio.clamp(0.8, 1.2) * unit)

    found = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0))(
        {name: value.detach() for name, value in parameters_of(module).items()},
        seen_by_the_policy(rows), rows.actions[:, 0], unit, old,
    )  # fmt: skip
    return flat(found, rows=len(rows))


def gradient_of(module: ControlPPOModule, loss: Tensor) -> Tensor:
    parameters = parameters_of(module)
    found = torch.autograd.grad(loss, list(parameters.values()))
    return flat(dict(zip(parameters, found, strict=True)), rows=1)[0]


def log_probs_of(module: ControlPPOModule, rows: ControlEpisodes) -> Tensor:
    return log_prob(module, parameters_of(module), seen_by_the_policy(rows), rows.actions[:, 0])


@pytest.mark.parametrize(
    ("name", "target", "num_steps"),
    [
        ("FrozenLake-v1", ReturnOfBuffer(), 2048),
        ("FrozenLake-v1", ActionLogProb(observation=[14], action=[2]), 256),
        ("Pendulum-v1", ReturnOfBuffer(), 256),
    ],
    ids=["return", "action", "return, Gaussian"],
)
def test_scores_of_a_rollout_are_those_of_one_gradient_per_record(name: str, target: Target, num_steps: int) -> None:
    module, rows = module_of(name, num_steps=num_steps)
    found, plan = scores_of(module, rows, target)
    log_probs = log_probs_of(module, rows)
    advantages = rows.advantages[:, 0].double()
    objective = -(advantages * log_probs).mean()
    if isinstance(target, ActionLogProb):
        objective = -module.policy.actor(one_hot(torch.tensor([14]), 16).double()).log_softmax(-1)[0, 2]
    unit = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
    expected = row_gradients(module, rows, unit, log_probs.detach()) @ gradient_of(module, objective)
    assert len(found) == num_steps
    torch.testing.assert_close(found, expected, rtol=0, atol=FP64 * float(expected.abs().max()))
    # The bottom half of the negatives is dropped, and nothing else.
    dropped = expected.argsort(stable=True)[: int((expected < 0).sum()) // 2]
    assert torch.equal((~plan.keep).nonzero().flatten(), dropped.sort().values)


def by_the_papers_code(module: ControlPPOModule, rows: ControlEpisodes) -> Tensor:
    """Inner products of gradients over the linear layers; advantages normalised in chunks of 64 neighbours."""
    advantages, log_probs = rows.advantages[:, 0].double(), log_probs_of(module, rows)
    chunks = advantages.unflatten(0, (-1, 64))
    unit = ((chunks - chunks.mean(1, keepdim=True)) / (chunks.std(1, keepdim=True) + 1e-8)).flatten()
    found = row_gradients(module, rows, unit, log_probs.detach())
    return found @ gradient_of(module, -(advantages * log_probs).mean())


def test_a_rollout_of_one_chunk_has_the_scores_of_the_papers_code() -> None:
    module, rows = module_of("FrozenLake-v1", num_steps=64)
    found, expected = scores_of(module, rows, ReturnOfBuffer())[0], by_the_papers_code(module, rows)
    # The code divides by the unbiased deviation, which is one factor for all.
    factor = (64 / 63) ** 0.5
    torch.testing.assert_close(found, factor * expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.slow
def test_chunks_of_64_change_a_part_of_the_signs() -> None:
    module, rows = module_of("FrozenLake-v1", num_steps=2048)
    found, expected = scores_of(module, rows, ReturnOfBuffer())[0], by_the_papers_code(module, rows)
    correlation = float(torch.corrcoef(torch.stack([found, expected]))[0, 1])
    same_sign = float(((found < 0) == (expected < 0)).double().mean())
    assert correlation > 0.9
    # 0.87 here: normalising 64 neighbours moves the mean of each chunk.
    assert 0.8 < same_sign < 1


# --- within an update -----------------------------------------------------------------------------------------------


class Loop:
    """What an update needs besides the module: plain SGD."""

    def __init__(self, module: ControlPPOModule) -> None:
        self.module = module
        self.optimizer = torch.optim.SGD(module.parameters(), lr=RATE)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def loss_through_wrapper(self, minibatch: Any) -> Any:
        return self.module.minibatch_loss(minibatch)

    def backward_loss(self, loss: Tensor) -> None:
        loss.backward()

    def take_step(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), 0.5)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)


class StepScores(RoundScores):
    """Steps are those of the loop, and scores are of the module."""

    def __init__(self, loop: Loop, **given: Any) -> None:
        super().__init__(loop.module, **given)
        self.loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["module"], name)

    def backward_loss(self, loss: Tensor) -> None:
        self.loop.backward_loss(loss)

    def take_step(self) -> float:
        return self.loop.take_step()


def by_a_plain_loop(module: ControlPPOModule, rows: ControlEpisodes, *, epochs: int) -> Tensor:
    """At each step: the part of each row in the loss of its minibatch, against the return at these parameters."""
    old, advantages = rows.log_probs[:, 0].double(), rows.advantages[:, 0].double()
    returns = rows.returns[:, 0].double()
    scores = torch.zeros(len(rows), dtype=torch.float64)
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    for _ in range(epochs):
        for chosen in torch.randperm(len(rows)).tensor_split(len(rows) // 64):
            log_probs = log_probs_of(module, rows)
            ratio = (log_probs - old).exp()
            target = gradient_of(module, -(advantages * log_probs * ratio.detach()).mean())
            part = rows.select(chosen)
            unit = (advantages[chosen] - advantages[chosen].mean()) / (advantages[chosen].std() + 1e-8)
            scores[chosen] += row_gradients(module, part, unit, old[chosen]) @ target / len(chosen)
            ratio = (log_probs_of(module, part) - old[chosen]).exp()
            losses = -torch.minimum(ratio * unit, ratio.clamp(0.8, 1.2) * unit)
            values = module.policy.critic(one_hot(part.observations[:, 0], 16).double())
            (losses.mean() + 0.5 * (values[:, 0] - returns[chosen]).square().mean()).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    return scores


def test_scores_within_an_update_are_the_sums_over_its_steps() -> None:
    module, rows = module_of("FrozenLake-v1", num_steps=192, epochs=3)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(5)
    expected = by_a_plain_loop(module, rows, epochs=3)
    after = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(start)
    plan = UpdatePlan(episodes=rows)
    traced: Any = StepScores(Loop(module), target=ReturnOfBuffer(importance=True), plan=plan)
    torch.manual_seed(5)
    outcome = run_update(traced, traced.plan, module.update_settings)
    assert outcome.optimizer_steps == 9
    torch.testing.assert_close(traced.scores, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    # The update is the one without scores.
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, after[name], rtol=0, atol=1e-9)
    assert any(not torch.equal(value, start[name]) for name, value in after.items())


def test_scores_within_an_update_leave_no_row_out() -> None:
    module, rows = module_of("FrozenLake-v1", num_steps=64)
    target = ReturnOfBuffer(leave_out_self=True)
    with pytest.raises(UserError, match=r"target: ReturnOfBuffer leaves a row out .*; set leave_out_self to false"):
        RoundScores(module, target=target, plan=UpdatePlan(episodes=rows))


@pytest.mark.parametrize(
    ("given", "message"),
    [({"observation": [1, 2]}, r"target\.observation: got 2 numbers; expected 1"), ({"observation": []}, "is empty")],
    ids=["shape", "empty"],
)
def test_an_observation_of_another_shape_is_one_line(given: dict[str, Any], message: str) -> None:
    module, rows = module_of("FrozenLake-v1", num_steps=64)
    with pytest.raises(UserError, match=message):
        scores_of(module, rows, ActionLogProb(**{"action": [1], **given}))
