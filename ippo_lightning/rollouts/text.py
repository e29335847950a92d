"""Text rollouts: prompts + policy -> episodes, with each log-prob computed by the forward that training uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, SamplingSettings
from ippo_lightning.records import Example, TextEpisodes, passes
from ippo_lightning.records.pass_size import PassSize, run_in_halves


def collect_episodes(
    policy: CausalLMPolicy,
    *,
    prompts: Sequence[str],
    examples: Sequence[Example],
    sampling: SamplingSettings,
    micro_batch_size: int,
    size: PassSize | None = None,
    counts: Tensor | None = None,
) -> TextEpisodes:
    """Sample responses and score them under policy, reference and critic.

    Args:
        policy: samples and scores; its modes and gradients do not change.
        prompts: the texts to continue.
        examples: what the data module knows about each prompt, in the same order.
        sampling: the responses to one prompt stand next to each other.
        micro_batch_size: at most so many episodes per scoring forward.
        size: tokens of a scoring forward, padding included; None for no limit.
        counts: how many responses each prompt gets, shape [prompts], int64; None for `sampling.num_responses` each.

    Returns:
        Episodes whose rewards, advantages and returns are still NaN.

    Raises:
        UserError: no prompts, or one that with `max_new_tokens` does not fit the context.
    """
    episodes = sample_episodes(policy, prompts=prompts, examples=examples, sampling=sampling, counts=counts)
    filled = fill_log_probs(
        policy, episodes=episodes, temperature=sampling.temperature, micro_batch_size=micro_batch_size, size=size
    )
    if not sampling.reports_log_probs:
        return filled
    gap = (filled.log_probs - episodes.log_probs).masked_fill(~filled.mask, 0.0)
    return filled.evolve(sampler_gap=gap)


def sample_episodes(
    policy: CausalLMPolicy,
    *,
    prompts: Sequence[str],
    examples: Sequence[Example],
    sampling: SamplingSettings,
    counts: Tensor | None = None,
) -> TextEpisodes:
    """Sample responses; every other number of the episodes is NaN. Arguments as in `collect_episodes`.

    `log_probs` are those of the sampler if it reports some, until `fill_log_probs` puts the policy's in their place.
    """
    if not prompts:
        raise UserError("rollout: the batch has 0 prompts; expected at least 1")
    # Checked before sampling, so that a prompt that is too long costs no time and is named by its number.
    room = policy.context_length - sampling.max_new_tokens
    try:
        prompt_ids, prompt_mask = policy.text.encode_prompts(prompts, max_length=room)
    except UserError as error:
        context = f"a context of {policy.context_length} less sampling.max_new_tokens = {sampling.max_new_tokens}"
        raise UserError(f"{error} (room for a prompt: {context})") from error
    prompt_ids, prompt_mask = prompt_ids.to(policy.device), prompt_mask.to(policy.device)
    repeats = [sampling.num_responses] * len(prompts) if counts is None else counts.tolist()
    samples = policy.sample(prompt_ids, prompt_mask, sampling, counts=counts)
    # NaN, so that a stage that reads a number before another has filled it shows at once.
    unknown = torch.full(samples.response_ids.shape, torch.nan, device=prompt_ids.device)
    # The order in which `policy.sample` returns the responses.
    index = torch.arange(len(prompts)).repeat_interleave(torch.tensor(repeats)).to(prompt_ids.device)
    return TextEpisodes(
        prompt_ids=prompt_ids[index],
        prompt_mask=prompt_mask[index],
        response_ids=samples.response_ids,
        mask=samples.response_mask,
        truncated=samples.truncated,
        group=index,
        log_probs=unknown if samples.log_probs is None else samples.log_probs.to(unknown),
        ref_log_probs=unknown,
        values=unknown,
        outcome_rewards=unknown.new_full((len(index),), torch.nan),
        rewards=unknown,
        advantages=unknown,
        returns=unknown,
        prompts=tuple(prompts[place] for place in index.tolist()),
        responses=decode_responses(policy, samples.response_ids, samples.response_mask),
        examples=tuple(examples[place] for place in index.tolist()),
    ).trimmed()


@torch.no_grad()
def fill_log_probs(
    policy: CausalLMPolicy,
    *,
    episodes: TextEpisodes,
    temperature: float,
    micro_batch_size: int,
    size: PassSize | None = None,
) -> TextEpisodes:
    """Fill `log_probs`, `ref_log_probs` and `values` with what training's own forward gives.

    Args:
        policy: see `collect_episodes`.
        episodes: sampled, at least one.
        temperature: of sampling; the log-probs are those of the distribution that was sampled from.
        micro_batch_size: at most so many episodes per forward.
        size: tokens of a forward, padding included; None for no limit.
    """
    # Not the sampler's own numbers: with a cache, or in another engine, they are rounded differently, and PPO's ratio
    # would not be 1 before the first step. float32 also for a half-precision policy.
    log_probs = torch.zeros(episodes.response_ids.shape, device=episodes.response_ids.device)
    ref_log_probs, values = torch.zeros_like(log_probs), torch.zeros_like(log_probs)

    def fill(rows: Tensor) -> None:
        part = episodes.select(rows)
        columns = part.response_ids.shape[1]
        tokens = (part.prompt_ids, part.prompt_mask, part.response_ids, part.response_mask)
        output = policy(*tokens, temperature=temperature, with_values=policy.has_values)
        log_probs[rows, :columns] = output.log_probs.float()
        if output.values is not None:
            values[rows, :columns] = output.values.float()
        if policy.has_reference:
            ref_log_probs[rows, :columns] = policy.reference_log_probs(*tokens, temperature=temperature).float()
        else:  # the policy itself, so that the divergence and its penalty are 0
            ref_log_probs[rows, :columns] = output.log_probs.float()

    can_retry = not is_sharded(policy)
    # By the steps of the response, so that short ones share a pass; one number for all prompts leaves that order.
    costs = episodes.spans + (episodes.cost() - episodes.spans).max()
    max_tokens = None if size is None else size.tokens
    # a pass that is repeated for other ranks writes the same numbers again
    for rows, *_ in passes(costs, module=policy, max_rows=micro_batch_size, max_tokens=max_tokens):
        run_in_halves(rows, fill, field="update.micro_batch_size", can_retry=can_retry)
    off = ~episodes.mask  # what stands between the policy's own tokens was read, but does not count
    return episodes.evolve(
        log_probs=log_probs.masked_fill(off, 0.0),
        ref_log_probs=ref_log_probs.masked_fill(off, 0.0),
        values=values.masked_fill(off, 0.0),
    )


def decode_responses(policy: CausalLMPolicy, response_ids: Tensor, response_mask: Tensor) -> tuple[str, ...]:
    """Return the responses as text for rewards and reports; the policy's `special_tokens` decides about tags.

    Args:
        policy: its tokenizer decodes.
        response_ids: shape [rows, steps], int64.
        response_mask: shape [rows, steps], bool.
    """
    return tuple(policy.text.decode(response_ids, response_mask))


class SampledResponses(NamedTuple):
    """What a policy answers to prompts in an evaluation."""

    texts: list[list[str]]
    """One list per prompt, one text per sample."""
    lengths: Tensor
    """Tokens of each response, EOS included, shape [prompts, samples], int64, on the CPU."""
    truncated: Tensor
    """Whether the length limit came before the end, shape [prompts, samples], bool, on the CPU."""


def sample_responses(policy: CausalLMPolicy, *, prompts: Sequence[str], sampling: SamplingSettings) -> SampledResponses:
    """Return `num_responses` responses to each prompt, for evaluation.

    Args:
        policy: samples; it does not change.
        prompts: the texts to continue.
        sampling: how; all `num_responses` responses to a prompt are in one list.
    """
    # Through the path of training: an evaluation then samples as training does.
    episodes = sample_episodes(policy, prompts=prompts, examples=[{}] * len(prompts), sampling=sampling)
    shape, texts = (len(prompts), sampling.num_responses), episodes.responses
    return SampledResponses(
        [list(texts[start : start + shape[1]]) for start in range(0, len(texts), shape[1])],
        episodes.mask.sum(dim=1).reshape(shape).cpu(),
        episodes.truncated.reshape(shape).cpu(),
    )
