"""Control goes through the same functions as text: estimator, engine, filter and scores on transitions of CartPole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import gymnasium
import pytest
import torch
from torch import Tensor, nn

from ippo_lightning.algorithms import GAE, ClippedLoss, ValueLoss
from ippo_lightning.callbacks import InfluenceFilter, ScoringSettings
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.engine.update import run_update
from ippo_lightning.maths import masked_row_mean, reduce_terms
from ippo_lightning.policies import PolicyOutput
from ippo_lightning.records import ControlEpisodes, Minibatch, Pass, UpdatePlan, passes
from ippo_lightning.records.pass_size import PassSize
from ippo_lightning.selection import Demonstrations, ReturnOfBuffer, Target

ENVIRONMENTS, STEPS = 4, 24
ROUNDING = 1e-5


class CartPole(nn.Module):
    """An actor and a critic, with what the engine and the filter need of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
        self.critic = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
        self.loss, self.value_loss = ClippedLoss(), ValueLoss()
        self.optimizer = torch.optim.SGD(self.parameters(), lr=1e-2)

    def score(self, episodes: ControlEpisodes) -> PolicyOutput:
        log_probs = self.actor(episodes.observations).log_softmax(-1)
        chosen = log_probs.gather(-1, episodes.actions[..., None]).squeeze(-1)
        return PolicyOutput(
            log_probs=chosen,
            entropy=-(log_probs.exp() * log_probs).sum(-1),
            values=self.critic(episodes.observations).squeeze(-1),
        )

    def episode_losses(self, episodes: ControlEpisodes) -> Tensor:
        return masked_row_mean(values=self.loss.terms(self.score(episodes), episodes), mask=episodes.mask)

    def validation_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.actor(batch[0]), batch[1])

    pass_size = PassSize("auto", field="update.max_tokens")

    def clear_gradients(self) -> None:
        self.optimizer.zero_grad()

    def loss_through_wrapper(self, minibatch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        episodes, output = minibatch.episodes, self.score(minibatch.episodes)  # type: ignore[arg-type]
        parts = []
        for terms, weights, denominator in (
            (self.loss.terms(output, episodes), minibatch.weights, minibatch.policy_denominator),
            (self.value_loss.terms(output.values, episodes), minibatch.value_weights, minibatch.value_denominator),  # type: ignore[arg-type]
        ):
            parts.append(
                reduce_terms(
                    terms=terms, mask=episodes.mask, weights=weights, reduction="episode_mean", denominator=denominator
                )
            )
        zero, tokens = torch.zeros(()), episodes.mask.sum()
        names = ("entropy_sum", "approx_kl_sum", "clipped_tokens", "ratio_sum")
        sums = {**dict.fromkeys(names, zero), "tokens": tokens}
        sums |= {"policy_loss": parts[0].detach(), "value_loss": parts[1].detach()}
        return parts[0] + parts[1], sums

    def backward_loss(self, loss: Tensor) -> None:
        loss.backward()

    def no_sync(self, enabled: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def passes(
        self, costs: Tensor, *, max_rows: int, max_tokens: int | None = None, sort: bool = True
    ) -> Iterator[Pass]:
        return passes(costs, max_rows=max_rows, max_tokens=max_tokens, sort=sort)

    def take_step(self) -> float:
        norm = nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)

    def why_not_finite(self, minibatch: Minibatch) -> str | None:
        return None

    def keep_skipped_step(self, message: str) -> None:
        pass


@torch.no_grad()
def rollout(module: CartPole) -> ControlEpisodes:
    """Play some steps. The reset step of the autoreset is no transition: the mask has holes."""
    environments = gymnasium.make_vec("CartPole-v1", num_envs=ENVIRONMENTS)
    observation, _ = environments.reset(seed=1)
    was_done = torch.zeros(ENVIRONMENTS, dtype=torch.bool)
    steps: list[dict[str, Tensor]] = []
    for _ in range(STEPS):
        state = torch.as_tensor(observation)
        policy = torch.distributions.Categorical(logits=module.actor(state))
        action = policy.sample()
        observation, reward, terminated, truncated, _ = environments.step(action.numpy())
        ended = torch.as_tensor(terminated)
        done = ended | torch.as_tensor(truncated)
        steps.append(
            {
                "observations": state,
                "actions": action,
                "log_probs": policy.log_prob(action),
                "values": module.critic(state).squeeze(-1),
                "next_values": module.critic(torch.as_tensor(observation)).squeeze(-1),
                "rewards": torch.as_tensor(reward).float(),
                "terminated": ended,
                "done": done,
                "mask": ~was_done,
            }
        )
        was_done = done
    columns = {name: torch.stack([step[name] for step in steps], dim=1) for name in steps[0]}
    nothing = torch.zeros(ENVIRONMENTS, STEPS)
    return ControlEpisodes(
        **columns,
        ref_log_probs=nothing,
        advantages=nothing,
        returns=nothing,
        outcome_rewards=columns["rewards"].sum(dim=1),
        truncated=torch.zeros(ENVIRONMENTS, dtype=torch.bool),
        group=torch.arange(ENVIRONMENTS),
    )


@pytest.fixture
def module() -> CartPole:
    return CartPole()


@pytest.fixture
def fragments(module: CartPole) -> ControlEpisodes:
    episodes = GAE(gamma=0.99)(rollout(module))
    assert 0 < int((~episodes.mask).sum()) < 10
    return episodes


def demonstrations() -> Demonstrations:
    states = torch.randn(32, 4)
    return Demonstrations(batches=[(states, (states[:, 2] > 0).long())])


def plain_scores(module: CartPole, episodes: ControlEpisodes, target: Target) -> Tensor:
    """One plain backward per row, and one for the target."""
    parameters = list(module.actor.parameters())
    loss, batches, *_ = target.loss(module, UpdatePlan(episodes=episodes))
    direction = torch.autograd.grad(loss(module, batches[0]), parameters)
    found = []
    for one in module.episode_losses(episodes):
        own = torch.autograd.grad(one, parameters, retain_graph=True)
        found.append(sum((a * b).sum() for a, b in zip(own, direction, strict=True)))
    return torch.stack(found)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["transitions", "fragments with holes"])
@pytest.mark.parametrize("target", [demonstrations(), ReturnOfBuffer()], ids=["demonstrations", "return"])
@pytest.mark.parametrize("max_tokens", [16384, 60], ids=["one pass", "passes"])
def test_scores_of_control_are_the_inner_products_of_plain_gradients(
    kind: str, target: Target, max_tokens: int, module: CartPole, fragments: ControlEpisodes
) -> None:
    episodes = fragments.transitions() if kind == "transitions" else fragments
    plan = UpdatePlan(episodes=episodes)
    scoring = ScoringSettings(max_tokens=max_tokens, health_every_n_iterations=0)
    InfluenceFilter(target=target, scoring=scoring).on_rollout_end(None, module, plan)
    expected, found = plain_scores(module, episodes, target), plan.history[0].scores
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))
    positive = expected.clamp(min=0)
    torch.testing.assert_close(plan.weights, positive / positive[positive > 0].mean(), rtol=1e-3, atol=1e-4)


def test_numbers_off_the_mask_change_neither_scores_nor_weights(module: CartPole, fragments: ControlEpisodes) -> None:
    def weights(episodes: ControlEpisodes, rule: Any) -> Tensor:
        plan = UpdatePlan(episodes=episodes)
        InfluenceFilter(rule=rule, target=ReturnOfBuffer() if rule == "influence" else None).on_rollout_end(
            None, module, plan
        )
        return plan.weights

    noisy = torch.where(fragments.mask, fragments.advantages, 1e3)
    for rule in ("influence", "advantage_sign"):
        torch.testing.assert_close(weights(fragments.evolve(advantages=noisy), rule), weights(fragments, rule))


def test_the_engine_trains_on_the_transitions_that_the_filter_keeps(
    module: CartPole, fragments: ControlEpisodes
) -> None:
    plan = UpdatePlan(episodes=fragments.transitions())
    InfluenceFilter(target=demonstrations(), power=0).on_rollout_end(None, module, plan)
    plan.sealed = True
    before = [parameter.detach().clone() for parameter in module.actor.parameters()]
    outcome = run_update(module, plan, UpdateSettings(num_epochs=2, minibatch_size=16))
    assert outcome.kept_fraction == pytest.approx(float(plan.keep.float().mean()))
    assert outcome.tokens_trained == 2 * int(plan.keep.sum())
    assert not any(torch.equal(old, new) for old, new in zip(before, module.actor.parameters(), strict=True))
