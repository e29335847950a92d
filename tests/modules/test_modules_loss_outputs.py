"""A loss reads what it declares, returns a loss per step, and its parts are what they are said to be."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from training_parts import length_reward, prepared, tiny_module, tiny_policy

from ippo_lightning import PPOModule, TextEpisodes
from ippo_lightning.algorithms import ClippedLoss, PolicyLoss
from ippo_lightning.errors import UserError
from ippo_lightning.influence import influence_scores, target_gradient
from ippo_lightning.policies import PolicyOutput
from ippo_lightning.records import Episodes, Minibatch


class EntropyTerm(PolicyLoss):
    def terms(self, output: PolicyOutput, episodes: Episodes) -> Tensor:
        return ClippedLoss().terms(output, episodes) - 0.1 * output.entropy  # type: ignore[operator]


class ValueTerm(PolicyLoss):
    reads: ClassVar[frozenset[str]] = frozenset({"values"})

    def terms(self, output: PolicyOutput, episodes: Episodes) -> Tensor:
        assert output.values is not None
        return ClippedLoss().terms(output, episodes) + output.log_probs * output.values.detach()


class PerRow(PolicyLoss):
    def terms(self, output: PolicyOutput, episodes: Episodes) -> Tensor:
        return output.log_probs.sum(dim=1)


class PerRowAsColumn(PolicyLoss):
    def terms(self, output: PolicyOutput, episodes: Episodes) -> Tensor:
        return output.log_probs.sum(dim=1, keepdim=True)


def minibatch_of(episodes: TextEpisodes) -> Minibatch:
    ones = torch.ones(len(episodes))
    return Minibatch(episodes=episodes, weights=ones, value_weights=ones, policy_denominator=8.0, value_denominator=8.0)


def losses_of(module: PPOModule, episodes: TextEpisodes) -> dict[str, Any]:
    return {
        "minibatch_loss": lambda: module.minibatch_loss(minibatch_of(episodes)),
        "episode_losses": lambda: module.episode_losses(episodes),
        "rollout_losses": lambda: module.rollout_losses(episodes),
    }


@pytest.mark.parametrize("consumer", ["minibatch_loss", "episode_losses", "rollout_losses"])
def test_an_entropy_that_the_loss_does_not_declare_is_refused_and_not_detached(consumer: str) -> None:
    module = tiny_module(loss=EntropyTerm())
    with pytest.raises(UserError, match=r"output\.entropy or output\.values, list the name in loss_reads"):
        losses_of(module, prepared(module))[consumer]()


@pytest.mark.parametrize("consumer", ["minibatch_loss", "episode_losses", "rollout_losses"])
def test_a_loss_per_row_is_refused_also_if_there_are_as_many_rows_as_steps(consumer: str) -> None:
    module = tiny_module()
    episodes = prepared(module)
    square = episodes.select(torch.arange(episodes.mask.shape[1]))
    assert len(square) == square.mask.shape[1]
    module.loss = PerRow()
    with pytest.raises(UserError, match=r"loss_terms: returned shape \[8\]; expected \[rows, steps\], here \[8, 8\]"):
        losses_of(module, square)[consumer]()


def test_a_column_is_one_loss_for_all_steps_of_a_row() -> None:
    module = tiny_module(loss=PerRowAsColumn())
    episodes = prepared(module)
    expected = module.score(episodes).log_probs.sum(dim=1)
    torch.testing.assert_close(module.episode_losses(episodes), expected)


def test_declared_values_reach_every_consumer() -> None:
    module = tiny_module(loss=ValueTerm())
    episodes = prepared(module)
    known = module.rollout_losses(episodes)
    assert known is not None
    torch.testing.assert_close(known, module.episode_losses(episodes).detach(), rtol=1e-5, atol=1e-6)
    module.minibatch_loss(minibatch_of(episodes))


def test_parts_of_another_type_and_unknown_reads_are_refused() -> None:
    class Misspelt(PPOModule):
        loss_reads = frozenset({"entropie"})

    with pytest.raises(
        UserError, match=r"model.loss_reads: 'entropie' is unknown; expected names from entropy, values"
    ):
        Misspelt(policy=tiny_policy(), reward=length_reward)
    with pytest.raises(UserError, match=r"model.loss: got function; expected an object of a subclass of .*PolicyLoss"):
        tiny_module(loss=length_reward)
    with pytest.raises(UserError, match=r"model.advantages: got object; expected .*AdvantageEstimator"):
        tiny_module(advantages=object())


class ReplacedLosses(PPOModule):
    """Scores another loss than it trains, and does not say so in `rollout_losses`."""

    def episode_losses(self, episodes: TextEpisodes) -> Tensor:
        return -super().episode_losses(episodes)


def test_stored_losses_of_another_function_are_noticed_and_not_used() -> None:
    plain = tiny_module()
    module = ReplacedLosses(policy=plain.policy, reward=length_reward, sampling=plain.sampling)
    episodes = prepared(module)
    batch = {"prompts": ["1+2?", "9-4?"], "responses": ["1+2=3;#3", "9-4=5;#5"]}
    direction = target_gradient(module, lambda owner, one: owner.validation_loss(one), [batch])

    def scores(**way: Any) -> Tensor:
        return influence_scores(module, lambda owner, part: owner.episode_losses(part), [episodes], direction, **way)

    with pytest.warns(UserWarning, match="known_losses: they are not the losses at the current parameters"):
        found = scores(method="finite_difference", known_losses=module.rollout_losses)
    exact = scores(method="hooks")
    certain = exact.abs() > 0.05 * exact.abs().max()
    assert torch.equal(found.sign()[certain], exact.sign()[certain])


@pytest.mark.parametrize("name", ["reward", "grader"])
def test_a_module_that_is_assigned_as_reward_or_grader_is_used_and_no_child(name: str) -> None:
    class Judged(nn.Module):
        def forward(self, *arguments: Any) -> Any:
            return [7.0] * len(arguments[0]) if name == "reward" else True

    module = tiny_module()
    children = set(dict(module.named_modules()))
    setattr(module, name, Judged())
    assert set(dict(module.named_modules())) == children
    if name == "reward":
        episodes = prepared(module)
        assert module.compute_rewards(episodes).outcome_rewards.tolist() == [7.0] * len(episodes)
    else:
        assert module.grader is not None
        assert module.grader("1+2?", "#3", {}).correct
