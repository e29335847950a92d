"""The gap of the sampler is measured, logged, and weighs the one loss that training and scores read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_parts import prepared, tiny_loop, tiny_module

from ippo_lightning.errors import UserError
from ippo_lightning.influence import influence_scores, target_gradient
from ippo_lightning.modules import PPOModule
from ippo_lightning.policies import SamplingSettings
from ippo_lightning.records import Minibatch, TextEpisodes

HALF = SamplingSettings(num_responses=2, max_new_tokens=8, dtype="bfloat16")
CAP = 1.5
BATCH = {"prompts": ["1+2?", "9-4?"], "responses": ["1+2=3;#3", "9-4=5;#5"]}


def exact_module() -> PPOModule:
    module = tiny_module(sampling=HALF, importance_cap=CAP)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.policy.policy_parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module


def in_double(module: PPOModule) -> TextEpisodes:
    """Episodes in fp64 whose gap has every case: none, below and above the cap, and one whose exp overflows."""
    episodes = prepared(module)
    module.double()
    with torch.no_grad():
        log_probs = module.score(episodes).log_probs
    generator = torch.Generator().manual_seed(1)
    gap = torch.randn(episodes.mask.shape, generator=generator, dtype=torch.float64)
    gap[0, 0], gap[1, 0] = 0.0, 1000.0
    advantages = torch.randn(episodes.mask.shape, generator=generator, dtype=torch.float64)
    off = ~episodes.mask
    return episodes.evolve(
        log_probs=log_probs, sampler_gap=gap.masked_fill(off, 0.0), advantages=advantages.masked_fill(off, 0.0)
    )


def by_hand(module: PPOModule, episodes: TextEpisodes, row: int) -> Tensor:
    """The weighted clipped loss of one episode, token by token."""
    output = module.score(episodes.select([row]))
    one = episodes.select([row])
    total = torch.zeros((), dtype=torch.float64)
    for step in range(int(one.lengths[0])):
        ratio = (output.log_probs[0, step] - one.log_probs[0, step]).exp()
        advantage = one.advantages[0, step]
        weight = min(float(one.sampler_gap[0, step].clamp(max=50).exp()), CAP)
        total = total - weight * torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    return total / int(one.lengths[0])


@pytest.mark.parametrize("method", ["hooks", "per_episode"])
def test_weighted_scores_equal_plain_autograd_of_the_weighted_loss(method: str) -> None:
    module = exact_module()
    episodes = in_double(module)
    direction = target_gradient(module, lambda owner, one: owner.validation_loss(one), [BATCH])
    names = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    expected = []
    for row in range(len(episodes)):
        gradients = torch.autograd.grad(by_hand(module, episodes, row), list(names.values()), allow_unused=True)
        expected.append(
            sum(
                (g * direction[n]).sum()
                for n, g in zip(names, gradients, strict=True)
                if g is not None and n in direction
            )
        )
    found = influence_scores(
        module, lambda owner, part: owner.episode_losses(part), [episodes], direction, method=method
    )
    wanted = torch.stack(expected).to(found)
    # as tight as the type that the scores are returned in allows
    tolerance = 1e-9 if found.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))
    module.importance_cap = None
    plain = influence_scores(module, lambda owner, part: owner.episode_losses(part), [episodes], direction)
    assert float((plain - wanted).abs().max()) > 0.1 * float(wanted.abs().max())


def test_the_minibatch_loss_is_that_of_the_episodes_and_a_row_of_huge_gap_stays_finite() -> None:
    module = exact_module()
    episodes = in_double(module)
    ones = torch.ones(len(episodes), dtype=torch.float64)
    minibatch = Minibatch(
        episodes=episodes, weights=ones, value_weights=ones, policy_denominator=1.0, value_denominator=1.0
    )
    _, sums = module.minibatch_loss(minibatch)
    losses = module.episode_losses(episodes)
    torch.testing.assert_close(sums["policy_loss"], losses.sum().detach())
    torch.testing.assert_close(losses[2], by_hand(module, episodes, 2))
    assert losses.isfinite().all()
    torch.testing.assert_close(module.rollout_losses(episodes), losses.detach())


def test_half_precision_sampling_logs_its_gap_and_full_precision_logs_none(tmp_path: Path) -> None:
    found = {}
    for name, sampling in {"half": HALF, "full": SamplingSettings(num_responses=2, max_new_tokens=8)}.items():
        loop = tiny_loop(tmp_path / name, tiny_module(sampling=sampling), max_iterations=1)
        loop.fit()
        stats = loop.module.last_stats
        found[name] = loop.folder.read_rows("history.jsonl")[0]
        gap = stats.episodes.sampler_gap[stats.episodes.mask].abs()
        assert bool((gap > 0).any()) is (name == "half")
        if name == "half":  # bfloat16 has eight bits: an error of about 1e-3 to 1e-2 in logits of a size of one
            assert found[name]["rollout/sampler_gap_mean"] == pytest.approx(float(gap.double().mean()))
            assert found[name]["rollout/sampler_gap_max"] == pytest.approx(float(gap.max()))
            assert 0 < found[name]["rollout/sampler_gap_max"] < 0.1
    assert not [key for key in found["full"] if "sampler_gap" in key]
    dtypes = {parameter.dtype for parameter in loop.module.parameters()}
    assert dtypes == {torch.float32}


@pytest.mark.parametrize(
    ("sampling", "cap", "message"),
    [
        (None, 2.0, r"importance_cap: 2.0 has no effect, because sampler generate reports no log-probs"),
        (HALF, 0.5, r"importance_cap: 0.5 is out of range; expected a number >= 1"),
    ],
    ids=["no log-probs", "too small"],
)
def test_a_cap_without_effect_or_out_of_range_is_refused(
    sampling: SamplingSettings | None, cap: float, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        tiny_module(importance_cap=cap, **({} if sampling is None else {"sampling": sampling}))


def test_episodes_keep_their_gap_when_they_are_cut_and_joined() -> None:
    episodes = prepared(tiny_module(sampling=HALF))
    parts = [episodes.select([row]) for row in range(len(episodes))]
    assert torch.equal(TextEpisodes.concat(parts).sampler_gap, episodes.sampler_gap)
