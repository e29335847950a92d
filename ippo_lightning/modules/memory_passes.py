"""Bytes of one pass through a language model, by arithmetic: what a forward keeps for its backward, and what is added.

The sums follow the layers of transformers as PyTorch runs them, without compilation: each norm, product and activation
keeps its own inputs. They are exact to a few bytes per token, which the tests compare with what autograd stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ippo_lightning.modules.model_shapes import ModelShape

Trained = Literal["full", "full_bf16", "lora", "nf4"]
"""`full` is float32; `full_bf16` is float32 under `fabric.precision: bf16-mixed`; `lora` is an adapter on
`policy.dtype: bfloat16`; `nf4` is the same on a base of 4 bits."""

BLOCK = 4 * 2**24
"""Bytes of the float32 logits of a block; see `ippo_lightning.policies.head_blocks`."""
_BLOCKS_FORWARD = 3
"""Blocks at a time: logits, their softmax, and what is made of both."""
_BLOCKS_BACKWARD = {4: 4, 2: 3}
"""The same with the gradients, by the bytes of a logit: logits, softmax and the gradient of each."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How a model is trained.

    Args:
        trained: see `Trained`.
        rank: of the adapter; without effect on full fine-tuning.
        checkpointing: whether the backward computes the layers again; `policy.gradient_checkpointing`.
    """

    trained: Trained
    rank: int = 8
    checkpointing: bool = False

    @property
    def is_full(self) -> bool:
        """Whether all weights train."""
        return self.trained in ("full", "full_bf16")

    @property
    def item(self) -> int:
        """Bytes of a number between two layers."""
        return 4 if self.trained == "full" else 2


def stored_per_token(shape: ModelShape, weights: Weights, *, width: int) -> float:
    """Return the bytes that one block of layers keeps per token for its backward.

    Args:
        shape: of the model.
        weights: how it is trained.
        width: tokens of a row, padding included; attention grows with it.
    """
    return _norms(shape, weights) + _attention(shape, weights, width=width) + _products(shape, weights)


def _norms(shape: ModelShape, weights: Weights) -> float:
    # Norms compute in float32. One that trains keeps its result, too, for the gradient of its weight.
    copies = 2 if weights.is_full else 1
    total = (4 if shape.has_output_norms else 2) * copies * 4 * shape.hidden
    if shape.has_head_norms:
        total += copies * 4 * (shape.queries + shape.keys)
    return total


def _attention(shape: ModelShape, weights: Weights, *, width: int) -> float:
    item = weights.item
    # With a mask for padding, keys and values are repeated for each head of the queries.
    total = 3 * shape.queries * item
    if shape.has_fused_layers:  # the values are a view of queries, keys and values together
        total += 2 * shape.keys * item
    if shape.stores_attention_matrix:
        # the capped logits and the probabilities, these in float32 and as the product reads them
        return total + shape.heads * width * (8 if item == 4 else 4 + 2 * item)
    kept_output = 0 if weights.is_full else shape.queries * item  # else it is the input of the next product
    return total + kept_output + width * item + 4 * shape.heads


def _products(shape: ModelShape, weights: Weights) -> float:
    layers = shape.linear_layers()
    middle = 3 * shape.intermediate * weights.item
    if weights.trained == "full":  # products of one input keep it once
        return middle + 4 * (2 * shape.hidden + shape.queries + shape.intermediate)
    # Autocast, or the adapter in float32, makes a copy of the input for each product.
    item = 2 if weights.is_full else 4
    copies = sum(inputs for inputs, _ in layers) * item
    return middle + copies + (0 if weights.is_full else 4 * weights.rank * len(layers))


def training_pass(
    shape: ModelShape, weights: Weights, *, rows: int, width: int, steps: int, with_gradients: bool = True
) -> float:
    """Return the bytes of a forward and backward at their peak, without weights and the sum of the gradients.

    Args:
        shape: of the model.
        weights: how it is trained.
        rows: of the pass.
        width: tokens of a row.
        steps: tokens of a response.
        with_gradients: whether the backward makes those of the weights; that of the scores does not.
    """
    tokens = rows * width
    block = tokens * stored_per_token(shape, weights, width=width)
    residual = 4 if weights.is_full else weights.item
    # with checkpointing, the input of each block, and all of the one whose backward runs
    stored = shape.layers * (tokens * shape.hidden * residual if weights.checkpointing else block)
    stored += block if weights.checkpointing else 0
    # the last norm and the features of the responses
    stored += tokens * shape.hidden * 3 * residual + rows * (steps + 1) * shape.hidden * (weights.item + residual)
    if weights.trained == "full_bf16":  # autocast's copies of the weights live until the backward has used them
        stored += 2 * shape.linear_parameters()
    head = _logits(shape, tokens=rows * steps, copies=_BLOCKS_BACKWARD[weights.item])
    embedding = 4 * shape.vocabulary * shape.hidden if weights.is_full and with_gradients else 0
    is_cut = rows * (steps + 1) * shape.vocabulary * 4 > BLOCK
    head += embedding * (2 if is_cut else 1)  # the gradient of a block beside the sum over blocks
    layer = tokens * _working(shape, weights) + _one_matrix(shape, weights)
    layer += embedding if shape.tied else 0  # the head's part waits for the embedding's
    return stored + max(head, layer)


def _working(shape: ModelShape, weights: Weights) -> float:
    """Return the bytes per token of gradients inside one layer."""
    wide, narrow = 3 * shape.intermediate * weights.item, 2 * shape.hidden * 4
    return wide + narrow + (0 if weights.is_full else 4 * shape.intermediate)


def _one_matrix(shape: ModelShape, weights: Weights) -> float:
    """Return the bytes of the largest weight of a layer where it exists for a moment: its gradient, or unpacked."""
    largest = max(inputs * outputs for inputs, outputs in shape.linear_layers())
    return {"full": 4, "full_bf16": 4, "lora": 0, "nf4": 2}[weights.trained] * largest


def inference_pass(shape: ModelShape, weights: Weights, *, rows: int, width: int, steps: int) -> float:
    """Return the bytes of a forward without gradients at its peak; arguments as in `training_pass`."""
    tokens = rows * width
    layer = tokens * (3 * shape.intermediate * weights.item + 3 * shape.hidden * 4)
    layer += 0 if weights.is_full else tokens * 4 * shape.intermediate  # the adapter's input in float32
    if shape.stores_attention_matrix:
        layer = max(layer, tokens * (4 * shape.queries * weights.item + shape.heads * width * 3 * weights.item))
    if weights.trained == "full_bf16":
        layer += 2 * shape.linear_parameters()
    head = _logits(shape, tokens=rows * steps, copies=_BLOCKS_FORWARD) + 2 * tokens * shape.hidden * 4
    return max(layer + _one_matrix(shape, weights) * (weights.trained == "nf4"), head)


def _logits(shape: ModelShape, *, tokens: int, copies: int) -> float:
    return copies * min(BLOCK, 4 * tokens * shape.vocabulary)


def sampling_pass(shape: ModelShape, weights: Weights, *, rows: int, prompt: int, steps: int) -> float:
    """Return the bytes of sampling at their peak: keys and values of all rows, and the logits of a step.

    Args:
        shape: of the model.
        weights: how it is trained.
        rows: that are sampled at the same time.
        prompt: tokens of a prompt.
        steps: tokens of a response.
    """
    item = 4 if weights.is_full else weights.item
    layer = rows * (prompt + steps) * 2 * shape.keys * item
    # A step makes the longer keys and values of one layer before it drops the shorter ones.
    cache = (shape.layers + 1) * layer
    logits = rows * shape.vocabulary * (weights.item + 8)
    first = inference_pass(shape, weights, rows=rows, width=prompt, steps=1)
    return max(cache + logits, cache * prompt / (prompt + steps) + first)
