"""Whether AgileRL and this project compute the same from equal weights and episodes; see `against_agilerl.py`."""

from __future__ import annotations

from typing import Any

import torch
from against_agilerl import build_agilerl, build_ours, problems
from torch import Tensor

COMPARED = 16
"""Episodes of the comparison."""


def compare(model: str) -> list[str]:
    """Return the largest differences between what both compute from equal weights and episodes."""
    from ippo_lightning.rollouts import collect_episodes

    torch.manual_seed(1)
    agent, module = build_agilerl(model), build_ours("critic: adapter", model)
    agent.beta = 0.0  # its penalty is a part of the loss, and ours a part of the reward
    shared = parameters_of_both(agent, module)
    for theirs, ours in shared.values():
        # an adapter starts as zero, which would hide one that has no effect
        ours.data = ours.data + 0.05 * torch.randn_like(ours)
        theirs.data = ours.data.clone()
    batch = next(iter(problems().train_dataloader()))
    few = {name: batch[name][:COMPARED] for name in ("prompts", "examples")}
    episodes = collect_episodes(module.policy, **few, sampling=module.sampling, micro_batch_size=COMPARED)
    frame = Frame(episodes, agent.pad_token_id)
    reference, old, values = agent._fused_forward_no_grad(frame.ids, batch_size=COMPARED)
    lines = [f"{frame.mask.sum()} response tokens of {COMPARED} episodes"]
    for name, found, expected in (
        ("log-probs", old, episodes.log_probs),
        ("log-probs of the reference", reference, episodes.ref_log_probs),
        ("values", values, episodes.values),
    ):
        lines.append(f"{name}: {difference(frame.taken(found), expected[episodes.mask])}")
    noise = [torch.randn(episodes.mask.shape) * episodes.mask for _ in range(4)]
    moved = episodes.evolve(
        # so that some ratios and some values are clipped
        log_probs=episodes.log_probs + 0.2 * noise[0],
        values=episodes.values + 0.2 * noise[1],
        advantages=noise[2],
        returns=episodes.values + noise[3],
    )
    return lines + losses_of_both(agent, module, moved, frame, shared)


def losses_of_both(
    agent: Any, module: Any, episodes: Any, frame: Frame, shared: dict[str, tuple[Tensor, Tensor]]
) -> list[str]:
    """Return how far losses and gradients of one minibatch differ."""
    from agilerl.lora.fused import unset_fused_adapter_routing

    from ippo_lightning.records import Minibatch

    ones, count = torch.ones(len(episodes)), float(episodes.mask.sum())
    loss, sums = module.minibatch_loss(
        Minibatch(
            episodes=episodes, weights=ones, value_weights=ones, policy_denominator=count, value_denominator=count
        )
    )
    loss.backward()
    old, advantages, old_values, returns = (
        frame.placed(getattr(episodes, name)[episodes.mask])
        for name in ("log_probs", "advantages", "values", "returns")
    )
    turns = torch.where(frame.mask, 0, -1)
    hidden, values = agent._actor_critic_hidden_states(frame.ids)
    log_probs = agent._actor_log_probs_from_hidden(hidden, frame.ids)
    policy_loss, _ = agent._ppo_policy_loss(log_probs, frame.mask, old, old, advantages, turns, 1, "token")
    value_loss = agent._ppo_value_loss(values, old_values, returns, frame.mask, turns, 1, "token")
    (policy_loss + value_loss).backward()
    unset_fused_adapter_routing(agent.actor)
    ours = torch.stack([sums["policy_loss"], module.value_loss.coef * sums["value_loss"]])
    lines = [f"policy loss and weighted value loss: {difference(torch.stack([policy_loss, value_loss]), ours)}"]
    grads = [torch.cat([gradient_of(pair[side]).flatten() for pair in shared.values()]) for side in (0, 1)]
    trained = [sum(p.numel() for p in owner.parameters() if p.requires_grad) for owner in (agent.actor, module)]
    return [*lines, f"gradient: {difference(*grads)}", f"trained parameters: {trained[0]} and {trained[1]}"]


class Frame:
    """Episodes as AgileRL wants them: prompt and response without padding between, padded on the right."""

    def __init__(self, episodes: Any, pad: int) -> None:
        prompts, responses = episodes.prompt_mask.sum(dim=1), episodes.mask.sum(dim=1)
        rows = [
            torch.cat([prompt[known], response[counts]])
            for prompt, known, response, counts in zip(
                episodes.prompt_ids, episodes.prompt_mask, episodes.response_ids, episodes.mask, strict=True
            )
        ]
        self.ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        places = torch.arange(1, self.ids.shape[1])[None]
        self.mask = (places >= prompts[:, None]) & (places < (prompts + responses)[:, None])
        """[rows, tokens - 1] bool, True where the next token is one of the response."""

    def taken(self, tensor: Tensor) -> Tensor:
        """Return the numbers of the response tokens, row after row."""
        return tensor[self.mask]

    def placed(self, numbers: Tensor) -> Tensor:
        """Return a tensor like the mask with these numbers on the response tokens."""
        return torch.zeros(self.mask.shape).masked_scatter(self.mask, numbers)


def parameters_of_both(agent: Any, module: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Return AgileRL's and our tensor of each trained parameter, by our name."""
    policy, critic = module.policy.model, module.policy.critic
    ours = {f"policy {name}": p for name, p in policy.named_parameters() if p.requires_grad}
    ours |= {
        f"critic base_model.model.model.{name}": p for name, p in critic.trunk.named_parameters() if p.requires_grad
    }
    ours |= {f"head {name}": p for name, p in critic.head.linear.named_parameters()}
    theirs: dict[str, Tensor] = {f"head {name}": p for name, p in agent.actor.v_head.summary.named_parameters()}
    for name, parameter in agent.actor.pretrained_model.named_parameters():
        for role, adapter in (("policy", ".actor."), ("critic", ".critic.")):
            if adapter in name:
                theirs[f"{role} {name.replace(adapter, '.default.')}"] = parameter
    assert theirs.keys() == ours.keys(), sorted(theirs.keys() ^ ours.keys())
    return {name: (theirs[name], ours[name]) for name in ours}


def gradient_of(parameter: Tensor) -> Tensor:
    """Return the gradient, zeros if there is none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def difference(found: Tensor, expected: Tensor) -> str:
    """Return the largest difference beside the largest number."""
    gap, size = (found - expected).abs().max(), expected.abs().max()
    return f"{float(gap):.1e} of {float(size):.3g}"
