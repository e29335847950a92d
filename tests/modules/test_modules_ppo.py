"""The policy loss is defined once: what overrides it changes training and each way of scoring alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer
from torch import Tensor
from training_parts import length_reward, prepared, tiny_data, tiny_loop, tiny_module, tiny_policy

from ippo_lightning import PPOModule, TextEpisodes
from ippo_lightning.algorithms import ClippedLoss, FixedKLController, GroupBaseline
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.errors import UserError
from ippo_lightning.influence import influence_scores, target_gradient
from ippo_lightning.maths import kl_estimate
from ippo_lightning.policies import PolicyOutput, SamplingSettings
from ippo_lightning.records import Minibatch, RolloutPlan
from ippo_lightning.tasks import grade_arithmetic


class KLInTheLoss(PPOModule):
    """Adds k3 per token, as GRPO does."""

    def loss_terms(self, output: PolicyOutput, episodes: TextEpisodes) -> Tensor:
        kl = kl_estimate(log_probs=output.log_probs, ref_log_probs=episodes.ref_log_probs, estimator="k3")
        return super().loss_terms(output, episodes) + 5.0 * kl


class EntropyInTheLoss(PPOModule):
    """Reads the entropy, which a rollout does not store."""

    loss_reads = frozenset({"entropy"})

    def loss_terms(self, output: PolicyOutput, episodes: TextEpisodes) -> Tensor:
        assert output.entropy is not None
        return super().loss_terms(output, episodes) - 2.0 * output.entropy


class AnotherTemperature(PPOModule):
    """Scores at twice the log-probs: everything that reads `score` must see it."""

    def score(self, episodes: TextEpisodes, **wanted: Any) -> PolicyOutput:
        output = super().score(episodes, **wanted)
        return PolicyOutput(log_probs=2 * output.log_probs, entropy=output.entropy, values=output.values)


KINDS = {"plain": PPOModule, "KL": KLInTheLoss, "entropy": EntropyInTheLoss, "score": AnotherTemperature}


def module_of(kind: str, **changes: Any) -> PPOModule:
    """With a reference that differs from the policy, so that a KL term has a gradient.

    In float32: transformers normalises in float32 whatever the weights are, so the step of a finite difference chosen
    for float64 would be lost in rounding.
    """
    policy = tiny_policy()
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.policy_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(0.2 * noise)
    update = UpdateSettings(num_epochs=1, minibatch_size=16, **changes.pop("update", {}))
    sampling = SamplingSettings(num_responses=2, max_new_tokens=8)
    return KINDS[kind](policy=policy, reward=length_reward, sampling=sampling, update=update, **changes)


def exact_episodes(module: PPOModule) -> TextEpisodes:
    """Episodes whose stored log-probs are those of the module's own `score`."""
    episodes = prepared(module)
    with torch.no_grad():
        log_probs = module.score(episodes).log_probs
    return episodes.evolve(log_probs=log_probs)


def scores_of(module: PPOModule, episodes: TextEpisodes, **way: Any) -> Tensor:
    batch = {"prompts": ["1+2?", "9-4?"], "responses": ["1+2=3;#3", "9-4=5;#5"]}
    direction = target_gradient(module, lambda owner, one: owner.validation_loss(one), [batch])
    return influence_scores(module, lambda owner, part: owner.episode_losses(part), [episodes], direction, **way)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["episode_mean", "token_mean"])
def test_every_consumer_sees_the_loss_that_a_subclass_defines(kind: str, reduction: str) -> None:
    module = module_of(kind, update={"loss_reduction": reduction})
    episodes = exact_episodes(module)
    exact = scores_of(module, episodes, method="hooks")
    per_row = scores_of(module, episodes, method="per_episode")
    torch.testing.assert_close(exact, per_row, rtol=1e-4, atol=1e-5)
    known = module.rollout_losses(episodes)
    if known is None:
        assert kind == "entropy", "only what a rollout does not store needs one more forward"
    else:
        torch.testing.assert_close(known, module.episode_losses(episodes).detach(), rtol=1e-5, atol=1e-6)
    one_forward = scores_of(
        module, episodes, method="finite_difference", known_losses=None if known is None else module.rollout_losses
    )
    two_sided = scores_of(module, episodes, method="finite_difference")
    certain = exact.abs() > 1e-3 * exact.abs().max()
    for found in (one_forward, two_sided):
        assert torch.equal(found.sign()[certain], exact.sign()[certain])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["episode_mean", "token_mean"])
def test_the_minibatch_loss_is_the_sum_of_the_episode_losses(kind: str, reduction: str) -> None:
    module = module_of(kind, update={"loss_reduction": reduction})
    episodes = exact_episodes(module)
    weights = torch.linspace(0.5, 1.5, len(episodes))
    minibatch = Minibatch(
        episodes=episodes,
        weights=weights,
        value_weights=torch.ones_like(weights),
        policy_denominator=3.0,
        value_denominator=3.0,
    )
    _, sums = module.minibatch_loss(minibatch)
    expected = (weights * module.episode_losses(episodes)).sum() / 3.0
    torch.testing.assert_close(sums["policy_loss"], expected.detach(), rtol=1e-5, atol=1e-6)


def test_the_subclasses_of_these_tests_do_change_the_scores() -> None:
    found = {}
    for kind in KINDS:
        module = module_of(kind)
        found[kind] = scores_of(module, exact_episodes(module), method="hooks")
    assert all(not torch.allclose(found["plain"], found[kind]) for kind in KINDS if kind != "plain")


def test_tokens_of_a_tool_are_read_and_do_not_count() -> None:
    module = module_of("plain")
    episodes = exact_episodes(module)
    row = int(episodes.lengths.argmax())
    mask = episodes.mask.clone()
    mask[row, 1] = False
    holed = episodes.evolve(mask=mask, advantages=episodes.advantages * mask)
    losses = module.episode_losses(holed)
    others = torch.arange(len(episodes)) != row
    torch.testing.assert_close(losses[others], module.episode_losses(episodes)[others], rtol=1e-5, atol=1e-6)
    terms = -holed.advantages[row][mask[row]]  # at ratio 1
    torch.testing.assert_close(losses[row], terms.mean(), rtol=1e-5, atol=1e-6)
    garbage = holed.evolve(advantages=holed.advantages.masked_fill(~mask, 1e6))
    torch.testing.assert_close(module.episode_losses(garbage), losses, rtol=0, atol=0)
    torch.testing.assert_close(scores_of(module, garbage), scores_of(module, holed), rtol=0, atol=0)


def test_a_critic_that_the_estimator_does_not_use_is_refused() -> None:
    with pytest.raises(UserError, match=r"policy\.value: GroupBaseline reads no values, and the policy has a critic"):
        tiny_module(advantages=GroupBaseline())


def test_grpo_is_a_group_baseline_without_a_critic() -> None:
    module = tiny_module(
        policy=tiny_policy(value="none"),
        advantages=GroupBaseline(),
        loss=ClippedLoss(low=0.2, high=0.28),
        kl_controller=FixedKLController(coef=0.0),
    )
    episodes = prepared(module)
    by_group = torch.zeros(len(episodes)).index_add(0, episodes.group, episodes.advantages[:, 0])
    assert by_group.abs().max() < 1e-5, "advantages of a group sum to zero"


def test_the_optimizer_takes_the_policy_and_its_critic_and_nothing_else() -> None:
    class WithAnother(PPOModule):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.another = torch.nn.Linear(2, 2)

    module = WithAnother(policy=tiny_policy(), reward=length_reward)
    assert {name.split(".")[0] for name in module.trained_parameters()} == {"policy"}
    assert any("value_head" in name for name in module.trained_parameters())


class RewardModel(torch.nn.Module):
    """A reward that is a module, with dropout that would show if it were in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.dropout = torch.nn.Dropout(0.9)

    def forward(self, prompts: Any, responses: Any, examples: Any) -> Tensor:
        assert not torch.is_grad_enabled()
        return self.dropout(self.scale * torch.tensor([float(len(response)) for response in responses]))


def test_a_reward_that_is_a_module_is_neither_trained_nor_saved(tmp_path: Path) -> None:
    reward = RewardModel()
    module = tiny_module(reward=reward)
    assert not [name for name in dict(module.named_parameters()) if "scale" in name or "reward" in name]
    assert not [name for name in module.state_dict() if "scale" in name]
    tiny_loop(tmp_path / "run", module).fit()
    assert module.last_stats is not None
    episodes = module.last_stats.episodes
    assert episodes.outcome_rewards.tolist() == [float(len(response)) for response in episodes.responses]
    assert (reward.scale.grad, reward.scale.requires_grad, reward.training) == (None, True, True)
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(name.startswith("policy.") for name in state["parameters"])


@pytest.mark.parametrize("runner", ["loop", "trainer"])
def test_the_grade_of_the_data_modules_task_is_the_default_reward(runner: str, tmp_path: Path) -> None:
    module = tiny_module(reward=None, grader=None)
    if runner == "loop":
        tiny_loop(tmp_path / "run", module, max_iterations=1).fit()
    else:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "limit_val_batches": 0}
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            limit_train_batches=1,
            default_root_dir=tmp_path,
            **quiet,
        )
        trainer.fit(module, datamodule=tiny_data())
    assert module.last_stats is not None
    episodes = module.last_stats.episodes
    graded = zip(episodes.prompts, episodes.responses, episodes.examples, strict=True)
    assert episodes.outcome_rewards.tolist() == [float(grade_arithmetic(*row).correct) for row in graded]


@pytest.mark.parametrize(
    ("grader", "fraction"),
    [(lambda *row: "polite", 1.0), (lambda *row: False, 0.0), (lambda *row: 1.0, 1.0)],
    ids=["a label", "a boolean", "a number"],
)
def test_a_grader_may_return_plain_values(grader: Any, fraction: float, tmp_path: Path) -> None:
    module = tiny_module(reward=None, grader=grader)
    metrics = tiny_loop(tmp_path / "run", module, max_iterations=1, test_at_end=True).fit()
    assert metrics["exact_match"] == fraction
    assert module.last_stats is not None
    assert module.last_stats.metrics["rollout/reward_mean"] == fraction


def test_a_grader_that_returns_no_grade_stops_the_run_before_its_first_iteration(tmp_path: Path) -> None:
    module = tiny_module(grader=lambda *row: ["right"])
    with pytest.raises(UserError, match=r"model\.grader: .* returned list"):
        tiny_loop(tmp_path / "run", module).fit()
    assert module.iteration == 0


def test_a_run_without_reward_and_grader_is_refused_before_its_first_iteration(tmp_path: Path) -> None:
    class Prompts(LightningDataModule):
        def train_dataloader(self) -> list[Any]:
            return []

    module = tiny_module(reward=None, grader=None)
    with pytest.raises(UserError, match=r"model\.reward: null, and there is no grader"):
        tiny_loop(tmp_path / "run", module, data=Prompts()).fit()


def test_responses_are_sampled_as_a_callback_allocates_them(tmp_path: Path) -> None:
    class Uneven(Callback):
        def on_rollout_start(self, trainer: Any, pl_module: Any, plan: RolloutPlan) -> None:
            counts = torch.zeros_like(plan.counts)
            counts[0], counts[-1] = 3, 1
            plan.allocate(counts, reason="test")

    module = tiny_module()
    tiny_loop(tmp_path / "run", module, callbacks=[Uneven()], max_iterations=1).fit()
    assert module.last_stats is not None
    assert module.last_stats.episodes.group.tolist() == [0, 0, 0, 7]
    assert len(set(module.last_stats.episodes.prompts)) == 2
