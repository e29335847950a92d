"""One check of a new policy, on a few short rows: the properties that PPO assumes of any model.

PPO compares log-probabilities of the same tokens from different passes: sampled and scored, alone and beside other
rows, policy and reference, before and after an update. Before the first update all of these must be equal. A model for
which they are not would train on noise, without any error.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from ippo_lightning.errors import UserError
from ippo_lightning.policies.base_changes import has_changed_base
from ippo_lightning.policies.contexts import evaluating, seeded, spread_weights, undisturbed
from ippo_lightning.policies.generation.generate import generated
from ippo_lightning.policies.generation.request import Request, response_mask_of
from ippo_lightning.policies.loading import transformers_model
from ippo_lightning.policies.probes import Probe, Rows, difference, probe, probe_rows, tolerance_of
from ippo_lightning.policies.sequences import join, response_logits
from ippo_lightning.policies.settings import SamplingSettings
from ippo_lightning.policies.tokenization import pad_id_of
from ippo_lightning.policies.train_mode import draws_random_numbers, kinds_with_gradient
from ippo_lightning.policies.tying import adapters_on_tied_weights

if TYPE_CHECKING:
    from ippo_lightning.policies.causal_lm import CausalLMPolicy

_NEW_TOKENS = 4
_FARTHEST = 32768
"""Position of the last token that is tried if the model has no limit."""


def check_policy(policy: CausalLMPolicy, *, keep_dropout: bool, as_loaded: Probe | None = None) -> None:
    """Check a new policy once, on rows of at most 13 tokens, and repair or refuse what would make PPO wrong.

    The cost is about 17 forwards of one or two such rows, a fraction of one batch of responses; a new model needs the
    memory of its weights twice, and an adapter that changes its base loads the base again. Weights, random numbers,
    modes and caches are the same afterwards.

    1. Train mode draws no random numbers and computes what evaluation mode computes; else the parts that differ stay
       in evaluation mode. Kept dropout is exempt.
    2. A row alone is the row beside longer ones, with padding on the left and on the right.
    3. A row does not depend on how far another row of its batch reaches; else the context is limited.
    4. An adapter that is continued computes what PEFT has loaded.
    5. The reference is the policy.
    6. Tokens sampled with a cache come from the distribution that is scored.

    Args:
        policy: before its first update. A policy with weights on the meta device is not checked: it has no numbers.
        keep_dropout: whether train mode is random on purpose.
        as_loaded: what the network computed when PEFT had loaded its adapter, see `probe_policy`; None without one.

    Raises:
        UserError: a property does not hold and cannot be repaired; the message contains the difference in nats.
    """
    if any(parameter.is_meta for parameter in policy.parameters()):
        return
    # the parts and not the policy, whose own attributes keep what the check finds
    with undisturbed(*policy.children()):
        if not _runs(policy):
            return
        if not keep_dropout:
            _check_train_mode(policy)
        with evaluating(policy):
            _check_loaded(policy, as_loaded)
            _check_reference(policy)
            is_new = policy.source.pretrained is None
            with spread_weights(policy.model) if is_new else nullcontext():
                _check_padding(policy)
                _limit_context(policy)
                _check_sampling(policy)
    policy.train(policy.training)


def probe_policy(policy: CausalLMPolicy) -> Probe:
    """Return what the policy's language model computes on two rows in evaluation mode, and leave no trace.

    Args:
        policy: if it is sharded, every rank must call this.
    """
    return _evaluated(policy, policy.model)


def trial_forward(policy: CausalLMPolicy) -> Callable[[], Tensor] | None:
    """Return a function that runs the policy's network on two short rows and returns logits; None if it cannot run.

    Args:
        policy: with its network; reference and critic may be missing.
    """
    # The same conditions as for the check: without numbers, or without a device to run on, there is nothing to see.
    if not policy.self_check or any(parameter.is_meta for parameter in policy.model.parameters()):
        return None
    rows = check_rows(policy).to(policy.device)
    return lambda: response_logits(policy.language_model, join(*rows), rows.response_ids.shape[1])


def check_rows(policy: CausalLMPolicy, *, prompts: tuple[bool, ...] = (False, True)) -> Rows:
    """Return the rows of the check: by default a short prompt with a long response, and the other way round.

    Args:
        policy: gives tokenizer and context.
        prompts: per row, whether its prompt is long.
    """
    # the first row is padded on the left beside a longer prompt, the second on the right beside a longer response
    responses = tuple(not long for long in prompts) if len(prompts) > 1 else (False,)
    return probe_rows(policy.text, prompts=prompts, responses=responses, context_length=policy.context_length)


def _runs(policy: CausalLMPolicy) -> bool:
    rows = check_rows(policy)
    try:
        with evaluating(policy):
            probe(policy.language_model, rows)
    except Exception as error:
        # a kernel for GPUs only is no fault of the model, which moves there after it was built
        if policy.device.type == "cpu" and torch.cuda.is_available():
            warnings.warn(
                f"policy.self_check: the model does not run on the CPU, where it was built ({_reason(error)}); it is "
                "not checked",
                stacklevel=4,
            )
            return False
        raise UserError(
            f"policy: the model cannot score token ids with attention_mask and position_ids; {_reason(error)}"
        ) from error
    return True


def _check_train_mode(policy: CausalLMPolicy) -> None:
    network, rows = policy.language_model, check_rows(policy)
    with evaluating(policy):
        expected = probe(network, rows)
    gap, drawn = _train_mode_gap(policy, rows, expected)
    if gap <= tolerance_of(network).nats(expected, same_shapes=True) and not drawn:
        return
    trained = kinds_with_gradient(network, lambda: _loss(policy, rows))
    policy.quiet_training = True
    policy.train()
    gap, drawn = _train_mode_gap(policy, rows, expected)
    if gap > tolerance_of(network).nats(expected, same_shapes=True) or drawn:
        raise UserError(
            f"policy: the model is random in train mode by {gap:.1e} nats, or differs from evaluation mode, also with "
            "every part in evaluation mode but the layers that checkpoint; set gradient_checkpointing: false, or "
            "remove the noise from the model's configuration"
        )
    # Some models compute a part without gradients in evaluation mode, which would silently stop training it.
    lost = sorted(trained - kinds_with_gradient(network, lambda: _loss(policy, rows)))
    if lost:
        raise UserError(
            f"policy: train mode is random or differs from evaluation mode, and in evaluation mode {lost[0]} gets no "
            "gradient; remove the noise from the model's configuration"
        )


def _train_mode_gap(policy: CausalLMPolicy, rows: Rows, expected: Probe) -> tuple[float, bool]:
    """Return the largest difference of two passes in train mode to evaluation mode, and whether they draw numbers."""
    passes: list[Probe] = []
    drawn = draws_random_numbers(lambda: passes.extend(probe(policy.language_model, rows) for _ in range(2)))
    return max(difference(expected, found) for found in passes), drawn


def _loss(policy: CausalLMPolicy, rows: Rows) -> torch.Tensor:
    return policy(*rows.to(policy.device)).log_probs.sum()


def _check_padding(policy: CausalLMPolicy) -> None:
    network = policy.language_model
    alone = probe(network, check_rows(policy, prompts=(False,)))
    tolerance = tolerance_of(network)
    for side, prompts, responses in (("left", (False, True), (False, False)), ("right", (False, False), (False, True))):
        rows = probe_rows(policy.text, prompts=prompts, responses=responses, context_length=policy.context_length)
        gap = difference(alone, probe(network, rows), coarse=tolerance.coarse)
        bound = tolerance.nats(alone)
        if gap > bound:
            raise UserError(
                f"policy: a row padded on the {side} differs by {gap:.1e} nats from the row alone (rounding of "
                f"{tolerance.why} explains {bound:.1e}), so the model does not leave padding out; use a model that "
                "reads attention_mask and position_ids"
            )


def _limit_context(policy: CausalLMPolicy) -> None:
    """Limit the context to rows that leave the others alone: some rotary tables are chosen by the longest row."""
    network = policy.language_model
    two = probe_rows(
        policy.text, prompts=(False, False), responses=(False, False), context_length=policy.context_length
    )
    length = two.prompt_ids.shape[1] + two.response_ids.shape[1]
    expected = probe(network, two)
    tolerance = tolerance_of(network)

    def gap_beside(reach: int) -> float:
        # Positions instead of tokens: a row that ends at a far position is as long for the model, and costs nothing.
        found = probe(network, two, first_position=torch.tensor([0, reach - length]))
        first = Probe(expected.log_probs[:1], expected.mask[:1])
        return difference(first, found, coarse=tolerance.coarse)

    bound = tolerance.nats(expected, same_shapes=True)
    good, bad = length, _FARTHEST if policy.context_length == sys.maxsize else policy.context_length
    gap = gap_beside(max(good, bad))
    if gap <= bound:
        return
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if gap_beside(middle) <= bound else (good, middle)
    policy.context_limit = good
    warnings.warn(
        f"policy: a row differs by {gap:.1e} nats beside a row of more than {good} tokens, because the model chooses "
        f"its position table by the longest row of a batch; the context of this policy is limited to {good} tokens",
        stacklevel=4,
    )


def _check_loaded(policy: CausalLMPolicy, as_loaded: Probe | None) -> None:
    if as_loaded is None:
        return
    gap = difference(as_loaded, probe(policy.language_model, check_rows(policy)))
    bound = tolerance_of(policy.language_model).nats(as_loaded, same_shapes=True)
    if gap > bound:
        raise UserError(
            f"policy.lora.adapter_path: the policy differs by {gap:.1e} nats from what PEFT loads (bound {bound:.1e}), "
            "because another part of the policy changed the base; set policy.reference to copy"
        )


def _check_reference(policy: CausalLMPolicy) -> None:
    if not policy.has_reference:
        return
    rows = check_rows(policy).to(policy.device)
    with torch.no_grad():
        expected, found = policy(*rows).log_probs, policy.reference_log_probs(*rows)
    gap = float((expected - found).abs().nan_to_num(nan=float("inf")).max())
    bound = tolerance_of(policy.language_model).nats(probe(policy.language_model, rows), same_shapes=True)
    if gap > bound:
        raise UserError(
            f"policy.reference: {policy.reference_kind!r} differs by {gap:.1e} nats from the policy before the first "
            f"step (bound {bound:.1e}); "
            + ("use copy" if policy.reference_kind != "copy" else "the model cannot be copied, use none")
        )


def _check_sampling(policy: CausalLMPolicy) -> None:
    room = policy.context_length - 1
    prompts = probe_rows(policy.text, prompts=(False, True), responses=(False, False), context_length=room)
    request = Request(
        prompt_ids=prompts.prompt_ids.to(policy.device),
        prompt_mask=prompts.prompt_mask.to(policy.device),
        settings=SamplingSettings(max_new_tokens=max(1, min(_NEW_TOKENS, room - prompts.prompt_ids.shape[1]))),
        stop_ids=policy.text.end_ids,
        pad_id=pad_id_of(policy.tokenizer),
    )
    network = policy.language_model
    sampled, scored = _sampled_and_scored(network, request)
    if not bool(scored.mask[:, 1:].any()):
        # each row has ended with its first token, before the cache was read
        sampled, scored = _sampled_and_scored(network, request._replace(stop_ids=[]))
    tolerance = tolerance_of(network)
    gap, bound = difference(scored, sampled, coarse=tolerance.coarse), tolerance.nats(scored)
    if gap > bound:
        raise UserError(
            f"policy: sampling with a cache draws from a distribution that differs by {gap:.1e} nats from the scored "
            f"one (rounding of {tolerance.why} explains {bound:.1e}); use a model whose `generate` neither processes "
            "its logits nor changes them through its cache"
        )


def _sampled_and_scored(network: PreTrainedModel, request: Request) -> tuple[Probe, Probe]:
    try:
        drawn = generated(network, request, with_scores=True)
    except Exception as error:
        raise UserError(
            f"policy: the model does not sample ({_reason(error)}); use another model, or set policy.self_check: false "
            "if it is never sampled from"
        ) from error
    response_ids = drawn.sequences[:, request.prompt_ids.shape[1] :]
    mask, _ = response_mask_of(response_ids, stop_ids=request.stop_ids)
    scored = probe(network, Rows(request.prompt_ids, request.prompt_mask, response_ids, mask))
    # what is left after every processor of logits, from which `generate` draws
    return Probe(torch.stack(drawn.scores, dim=1).float().log_softmax(-1).cpu(), scored.mask), scored


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def adapter_as_loaded(policy: CausalLMPolicy, adapter_path: str | None) -> Probe | None:
    """Return what the network computes right after PEFT has loaded a saved adapter; None without one.

    Args:
        policy: with its network, and neither reference nor critic.
        adapter_path: of the adapter that is continued.
    """
    if adapter_path is None or any(parameter.is_meta for parameter in policy.model.parameters()):
        return None
    expected = _evaluated(policy, policy.model)
    if has_changed_base(policy.model):
        # Only then a second load can differ. It needs the memory of another base for a moment.
        _check_second_load(policy, adapter_path, expected)
    return expected


def _check_second_load(policy: CausalLMPolicy, adapter_path: str, expected: Probe) -> None:
    with seeded(policy.source.seed + 1000), adapters_on_tied_weights():
        again = PeftModel.from_pretrained(policy.source.load(policy.tokenizer), adapter_path)
    gap, bound = difference(expected, _evaluated(policy, again)), tolerance_of(again).nats(expected)
    if gap > bound:
        raise UserError(
            f"policy.lora.adapter_path: two loads of {adapter_path!r} differ by {gap:.1e} nats, because its "
            "initialisation changes the base at random, so the trained model is lost; save the adapter with PEFT's "
            "path_initial_model_for_weight_conversion"
        )


def _evaluated(policy: CausalLMPolicy, model: PreTrainedModel | PeftModel) -> Probe:
    with undisturbed(model), evaluating(model):
        return probe(transformers_model(model), check_rows(policy))
