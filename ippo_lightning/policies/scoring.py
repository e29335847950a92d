"""Score responses with a language model: log-probs, entropy and values, without logits of a whole pass."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Literal

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from ippo_lightning.maths.log_probs import token_log_probs, token_log_probs_and_entropy
from ippo_lightning.policies.adapter_critic import AdapterCritic
from ippo_lightning.policies.attention_kernels import require_right_attention
from ippo_lightning.policies.contexts import evaluating
from ippo_lightning.policies.critic import SeparateCritic, captured_features, values_of
from ippo_lightning.policies.head_blocks import head_in_blocks
from ippo_lightning.policies.loading import transformers_model
from ippo_lightning.policies.output import PolicyOutput
from ippo_lightning.policies.reference import ReferenceKind, reference_active
from ippo_lightning.policies.sequences import Sequences, head_without_padding, response_logits, states_before
from ippo_lightning.policies.value_head import ValueHead


def score_responses(
    network: PreTrainedModel,
    sequences: Sequences,
    *,
    response_ids: Tensor,
    response_mask: Tensor,
    temperature: float,
    with_entropy: Literal["differentiable", "detached"] | bool,
    critic: tuple[ValueHead | None, AdapterCritic | SeparateCritic | None] | None,
) -> PolicyOutput:
    """Score responses with a model, and estimate their values.

    Args:
        network: the policy's language model.
        sequences: prompt and response.
        response_ids: [rows, steps] int64, padded on the right.
        response_mask: [rows, steps] bool.
        temperature: divides the logits.
        with_entropy: also return the entropy; true is "differentiable", "detached" is cheaper.
        critic: a head on the model's features, and a critic that has features of its own; None for no values.
    """
    require_right_attention(response_ids.device)
    num_tokens = response_ids.shape[1]
    reads_features = critic is not None and critic[1] is None
    reduce = partial(_reduced, temperature=temperature, with_entropy=with_entropy)
    # The value head reads the features of this same forward: a second one would double the cost.
    features: list[Tensor] = []
    results = head_in_blocks(network, sequences, response_ids, reduce)
    if results is not None:
        parts = results.parts
        features.append(results.features)
    else:
        keeping = captured_features(network, features) if reads_features else nullcontext()
        with keeping, head_without_padding(network, sequences):
            logits = response_logits(network, sequences, num_tokens)
        parts = reduce(logits, response_ids)
    values = None
    if critic is not None:
        every = values_of(*critic, sequences=sequences, features=features)
        values = states_before(every, num_tokens).masked_fill(~response_mask, 0.0)
    # masked_fill and not a product: the model may compute NaN for padding, and 0 * NaN is NaN
    log_probs, *entropy = (part.masked_fill(~response_mask, 0.0) for part in parts)
    return PolicyOutput(log_probs=log_probs, entropy=entropy[0] if entropy else None, values=values)


def score_with_reference(
    kind: ReferenceKind,
    model: PreTrainedModel | PeftModel,
    copied: PreTrainedModel | PeftModel | None,
    sequences: Sequences,
    *,
    response_ids: Tensor,
    response_mask: Tensor,
    temperature: float,
) -> Tensor:
    """Return the reference's log-probabilities of responses, shape [rows, steps], nats, 0.0 where the mask is False.

    Args:
        kind: of the reference.
        model: the policy's network.
        copied: the reference's own network; None if it is the policy's network in another state.
        sequences: prompt and response.
        response_ids: [rows, steps] int64, padded on the right.
        response_mask: [rows, steps] bool.
        temperature: that of sampling.
    """
    # An adapter reference runs the policy's own network, which may be in train mode with dropout.
    reference = copied if copied is not None else model
    with reference_active(kind, model), evaluating(reference):
        return score_responses(
            transformers_model(reference),
            sequences,
            response_ids=response_ids,
            response_mask=response_mask,
            temperature=temperature,
            with_entropy=False,
            critic=None,
        ).log_probs


def _reduced(
    logits: Tensor, ids: Tensor, *, temperature: float, with_entropy: Literal["differentiable", "detached"] | bool
) -> tuple[Tensor, ...]:
    if not with_entropy:
        return (token_log_probs(logits=logits, ids=ids, temperature=temperature),)
    return token_log_probs_and_entropy(
        logits=logits, ids=ids, temperature=temperature, detach_entropy=with_entropy == "detached"
    )
