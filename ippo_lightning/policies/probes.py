"""A few short rows, the distributions a network gives on them, and how far two such distributions are apart."""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ippo_lightning.policies.quantized import has_8bit_layers, is_quantized
from ippo_lightning.policies.sequences import join, response_logits
from ippo_lightning.policies.tokenization import TextFormat, pad_id_of

_PROMPTS = (3, 7)
_RESPONSES = (3, 6)
"""Tokens of the short and of the long prompt, and of the short and of the long response."""


class Rows(NamedTuple):
    """Prompts and responses as `CausalLMPolicy.forward` takes them."""

    prompt_ids: Tensor
    """[rows, prompt_tokens] int64, padded on the left."""
    prompt_mask: Tensor
    """[rows, prompt_tokens] bool."""
    response_ids: Tensor
    """[rows, steps] int64, padded on the right."""
    response_mask: Tensor
    """[rows, steps] bool."""

    def to(self, device: torch.device) -> Rows:
        """Return the rows on a device."""
        return Rows(*(tensor.to(device) for tensor in self))


class Probe(NamedTuple):
    """What a network computes on some rows."""

    log_probs: Tensor
    """[rows, steps, vocab] float32, on the CPU."""
    mask: Tensor
    """[rows, steps] bool, on the CPU."""


def probe_rows(
    text: TextFormat,
    *,
    prompts: tuple[bool, ...],
    responses: tuple[bool, ...],
    context_length: int,
) -> Rows:
    """Return rows of ordinary tokens; the first row is the same in every call.

    Args:
        text: of the policy, gives the ids; special tokens and tokens without an embedding are left out.
        prompts: per row, whether its prompt is long.
        responses: per row, whether its response is long.
        context_length: most tokens of a row; below 13, all parts become shorter.
    """
    # a remainder of at least two tokens: one of the prompt and one of the response
    scale = min(1.0, max(context_length, 2) / (_PROMPTS[1] + _RESPONSES[1]))
    prompt_lengths = [max(1, int(scale * _PROMPTS[long])) for long in prompts]
    response_lengths = [max(1, int(scale * _RESPONSES[long])) for long in responses]
    ids = _ordinary_ids(text)
    pad = pad_id_of(text.tokenizer)
    widths = max(prompt_lengths), max(response_lengths)
    prompt_ids, response_ids = (torch.full((len(prompts), width), pad) for width in widths)
    for row, (prompt, response) in enumerate(zip(prompt_lengths, response_lengths, strict=True)):
        # A generator per row: what a row contains does not depend on the rows beside it.
        draws = torch.randint(len(ids), (prompt + response,), generator=torch.Generator().manual_seed(row))
        tokens = ids[draws]
        prompt_ids[row, widths[0] - prompt :] = tokens[:prompt]
        response_ids[row, :response] = tokens[prompt:]
    prompt_mask = torch.arange(widths[0]) >= widths[0] - torch.tensor(prompt_lengths)[:, None]
    response_mask = torch.arange(widths[1]) < torch.tensor(response_lengths)[:, None]
    return Rows(prompt_ids, prompt_mask, response_ids, response_mask)


def _ordinary_ids(text: TextFormat) -> Tensor:
    limit = sys.maxsize if text.embedding_rows is None else text.embedding_rows
    every = sorted({token for token in text.tokenizer.get_vocab().values() if token < limit})
    special = set(text.tokenizer.all_special_ids)
    return torch.tensor([token for token in every if token not in special] or every)


@torch.no_grad()
def probe(network: PreTrainedModel, rows: Rows, *, first_position: Tensor | None = None) -> Probe:
    """Return the distributions that each response token of the rows is drawn from, at temperature 1.

    Args:
        network: a causal language model, in the mode that the caller chose.
        rows: on any device.
        first_position: [rows] int64, added to the positions of each row; None for 0.
    """
    rows = rows.to(next(network.parameters()).device)
    sequences = join(*rows)
    if first_position is not None:
        shifted = sequences.position_ids + first_position.to(rows.prompt_ids.device)[:, None]
        sequences = sequences._replace(position_ids=shifted)
    logits = response_logits(network, sequences, rows.response_ids.shape[1])
    return Probe(logits.float().log_softmax(-1).cpu(), rows.response_mask.cpu())


def difference(expected: Probe, found: Probe, *, coarse: bool = False) -> float:
    """Return how far two results on the same tokens are apart, in nats.

    Per token it is the mean of |log p - log q| over the vocabulary, weighted by p: what PPO's log-ratio would show on
    the model's own samples. Of the tokens, the worst one counts.

    Args:
        expected: p; only its True steps count.
        found: q; it may have more steps, more rows or a larger vocabulary.
        coarse: take the median of the tokens instead of the worst. In half precision, one token in many may choose
            another expert because of rounding alone, while a fault reaches most tokens.

    Returns:
        At least 0.0; infinity if a token has probability 0 in one of them, or a result is NaN.
    """
    log_p = expected.log_probs
    log_q = found.log_probs[: log_p.shape[0], : log_p.shape[1], : log_p.shape[2]]
    p = log_p.exp()
    # 0 * infinity is NaN: a token that neither of them can draw makes no difference
    gaps = torch.where(p > 0, p * (log_p - log_q).abs(), p).sum(-1)[expected.mask]
    if not bool(gaps.isfinite().all()):
        return float("inf")
    return float(gaps.median() if coarse else gaps.max())


_SINGLE = 64 * torch.finfo(torch.float32).eps
_TF32 = 2.0**-10
_EIGHT_BITS = 1 / 127
_ROUNDINGS = 4


class Tolerance(NamedTuple):
    """Largest difference that rounding explains."""

    relative: float
    """As a fraction of the size of the log-probs."""
    coarse: bool
    """Whether products are rounded more coarsely than float32."""
    why: str
    """The precision, for messages."""

    def nats(self, expected: Probe, *, same_shapes: bool = False) -> float:
        """Return the bound in nats.

        Args:
            expected: the distributions that are compared.
            same_shapes: both passes multiply tensors of the same shapes, in the same order.
        """
        # A logit is a sum that is rounded relative to its terms, and the largest |log p| is of the size of the logits:
        # log(vocab) plus their spread. A confident model therefore rounds more coarsely than a flat one.
        entropy = -(expected.log_probs.exp() * expected.log_probs.clamp_min(-100.0)).sum(-1)
        size = expected.log_probs.clamp_min(-100.0).abs().amax(-1) if not self.coarse else entropy.clamp_min(1.0)
        bound = self.relative * float(size[expected.mask].max())
        # Equal shapes run equal kernels, which give equal bits almost always; only sums by atomic additions differ.
        return bound / 16 if same_shapes else bound


def tolerance_of(*networks: nn.Module) -> Tolerance:
    """Return what rounding explains between two passes, by the coarsest precision of the networks.

    float32: products of the same row are added in another order if the shape of the batch changes; 64 units of the
    last place cover sums over thousands of terms and tens of layers. Half precision: each layer rounds its result once
    or twice, and these few roundings add up. 8 bits: an activation is rounded to one of 127 steps of the largest value
    of its row. 4 bits: the weights are the same in every pass, so the precision of the products counts.

    Args:
        networks: what is compared.
    """
    dtypes = {parameter.dtype for network in networks for parameter in network.parameters()}
    quantized = [module for network in networks if is_quantized(network) for module in network.modules()]
    compute_dtypes = [getattr(module, "compute_dtype", None) for module in quantized]
    dtypes |= {dtype for dtype in compute_dtypes if isinstance(dtype, torch.dtype)}
    devices = {parameter.device.type for network in networks for parameter in network.parameters()}
    dtypes |= {torch.get_autocast_dtype(device) for device in devices if torch.is_autocast_enabled(device)}
    if any(has_8bit_layers(network) for network in networks):
        return Tolerance(_ROUNDINGS * _EIGHT_BITS, True, "8-bit weights")
    for dtype in (torch.bfloat16, torch.float16):
        if dtype in dtypes:
            return Tolerance(_ROUNDINGS * torch.finfo(dtype).eps, True, str(dtype).removeprefix("torch."))
    if "cuda" in devices and torch.get_float32_matmul_precision() != "highest":
        return Tolerance(_ROUNDINGS * _TF32, True, "TF32")
    return Tolerance(_SINGLE, False, "float32")
