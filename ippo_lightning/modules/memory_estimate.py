"""How much memory a run needs on one device, by arithmetic, from the sizes of the model and of the run.

The estimate is that of the largest stage of an iteration. It leaves out what the device's driver takes and what is lost
between tensors; `smallest_gpu` keeps a tenth of the device free for both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from ippo_lightning.errors import UserError
from ippo_lightning.modules.memory_passes import Weights, inference_pass, sampling_pass, training_pass
from ippo_lightning.modules.model_shapes import ModelShape
from ippo_lightning.records.pass_size import FIXED

Method = Literal["sft", "ppo", "ippo"]
CriticKind = Literal["head", "adapter"]
GIB = 2**30

GPUS = {
    8: "RTX 4060",
    12: "RTX 3060",
    16: "RTX 4080",
    24: "RTX 4090, L4",
    40: "A100 40 GB",
    48: "L40S, RTX A6000",
    80: "A100 80 GB, H100",
    141: "H200",
}
"""GiB of memory to examples of such GPUs."""
RESERVE = 0.1
"""Fraction of a GPU that is left for CUDA's context, the kernels' own memory and gaps between tensors."""


@dataclass(frozen=True, kw_only=True)
class RunSizes:
    """What an iteration goes through at a time.

    Args:
        prompt: tokens of a long prompt.
        response: tokens of a response, `max_new_tokens`.
        update_rows: rows of a forward and backward of the update, and of a forward after sampling.
        scoring_rows: rows of a pass of the influence scores.
        target_rows: demonstrations of a pass of the validation gradient.
        sampled_rows: responses that are sampled at the same time.
    """

    prompt: int
    response: int
    update_rows: int
    scoring_rows: int
    target_rows: int
    sampled_rows: int

    @property
    def width(self) -> int:
        """Tokens of a row."""
        return self.prompt + self.response

    def least(self) -> RunSizes:
        """Return the sizes with passes of one row, to which a run shrinks where memory is short."""
        return replace(self, update_rows=1, scoring_rows=1, target_rows=1, sampled_rows=1)


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of a run.

    Args:
        kept: what exists all the time, by name.
        stages: what each stage of an iteration takes at its peak, `kept` included.
    """

    kept: dict[str, float]
    stages: dict[str, float]

    @property
    def peak(self) -> float:
        """Bytes of the largest stage."""
        return max(self.stages.values())

    @property
    def largest_stage(self) -> str:
        """Name of the stage with the peak."""
        return max(self.stages, key=lambda name: self.stages[name])


def rows_in(tokens: int, *, width: int, at_most: int) -> int:
    """Return the rows of a pass: as many as the tokens allow, at least one.

    Args:
        tokens: that a pass may have.
        width: tokens of a row.
        at_most: rows that a pass may have.
    """
    return max(min(tokens // width, at_most), 1)


def first_pass_rows(*, width: int, at_most: int) -> int:
    """Return the rows of a pass with `max_tokens: auto`, before memory has been measured or was short.

    Args:
        width: tokens of a row.
        at_most: rows that a pass may have.
    """
    return rows_in(FIXED, width=width, at_most=at_most)


def estimate(
    shape: ModelShape,
    weights: Weights,
    method: Method,
    sizes: RunSizes,
    *,
    critic: CriticKind = "head",
    optimizer: str = "adamw",
    health_groups: int = 8,
) -> MemoryEstimate:
    """Return what a run takes on one device, in bytes.

    Args:
        shape: of the model.
        weights: how it is trained.
        method: supervised fine-tuning, PPO, or PPO with the influence filter.
        sizes: of the run.
        critic: of PPO: a value head, or one with an adapter of its own.
        optimizer: `adamw`, or `adamw_8bit`.
        health_groups: as in `InfluenceFilter.scoring`; 0 with `health_every_n_iterations: 0`.

    Raises:
        UserError: a critic with an adapter on weights that train in full.
    """
    if critic == "adapter" and weights.is_full:
        raise UserError(f"critic: 'adapter' needs a frozen base, and the weights are {weights.trained}; use head")
    trained = trained_parameters(shape, weights, method, critic=critic)
    kept = {
        "weights": weight_bytes(shape, weights) + 4 * critic_parameters(shape, weights, method, critic=critic),
        # without an adapter, the KL penalty needs a second model
        "reference": 4 * shape.parameters() if weights.is_full and method != "sft" else 0,
        "optimizer": trained * optimizer_bytes(optimizer),
    }
    base, copy = sum(kept.values()), 4 * trained
    sampling = sampling_pass(shape, weights, rows=sizes.sampled_rows, prompt=sizes.prompt, steps=sizes.response)
    update = training_pass(shape, weights, rows=sizes.update_rows, width=sizes.width, steps=sizes.response)
    if critic == "adapter" and method != "sft":
        # Its forward is a second one, kept beside the policy's until the backward; its head makes no logits.
        update += training_pass(shape, weights, rows=sizes.update_rows, width=sizes.width, steps=1)
    # AdamW takes the root of all second moments at once, when the activations are gone.
    step = copy if optimizer == "adamw" else 0
    stages = {"sampling": base + sampling, "update": base + copy + max(update, step)}
    if method != "sft":
        forward = inference_pass(shape, weights, rows=sizes.update_rows, width=sizes.width, steps=sizes.response)
        stages["log-probs"] = base + forward + rollout_bytes(sizes)
    if method == "ippo":
        model = kept["weights"] + kept["reference"]
        influence = _influence(shape, weights, sizes, copy=copy, model=model, groups=health_groups)
        stages |= {name: base + taken for name, taken in influence.items()}
    return MemoryEstimate(kept=kept, stages=stages)


def _influence(
    shape: ModelShape, weights: Weights, sizes: RunSizes, *, copy: float, model: float, groups: int
) -> dict[str, float]:
    """Return what the influence filter takes beside weights and optimizer.

    A gradient of the target is a copy of the trainable parameters. To measure how far demonstrations agree, there is
    one per group in some iterations: all of them at once if they take no more than the model, else one after the other.
    """

    def one_pass(rows: int, *, with_gradients: bool = True) -> float:
        return training_pass(
            shape, weights, rows=rows, width=sizes.width, steps=sizes.response, with_gradients=with_gradients
        )

    score = one_pass(sizes.scoring_rows, with_gradients=False)
    # Beside the sum over the passes there is the gradient of the last one. Two rows are compared with plain autograd,
    # whose gradients are one more copy.
    target = 2 * copy + one_pass(sizes.target_rows)
    scores = copy + max(score, copy + one_pass(2))
    if groups:
        # Beside the groups there is their mean; with one after the other, also the mean of each half so far.
        copies = groups + 1 if groups * copy <= model else 4
        # Each group has its own passes.
        target = max(target, (copies + 1) * copy + one_pass(math.ceil(sizes.target_rows / groups)))
        scores = max(scores, copies * copy + score, (groups + 3) * copy if copies == groups + 1 else 0)
    return {"validation gradient": target, "influence scores": scores}


def trained_parameters(shape: ModelShape, weights: Weights, method: Method, *, critic: CriticKind = "head") -> int:
    """Return the number of parameters that train, those of the critic included."""
    policy = shape.parameters() if weights.is_full else shape.adapter_parameters(weights.rank)
    return policy + critic_parameters(shape, weights, method, critic=critic)


def critic_parameters(shape: ModelShape, weights: Weights, method: Method, *, critic: CriticKind) -> int:
    """Return the number of the critic's own parameters: those of its head, and of its adapter; 0 without a critic."""
    if method == "sft":
        return 0
    return shape.hidden + 1 + (shape.adapter_parameters(weights.rank) if critic == "adapter" else 0)


def weight_bytes(shape: ModelShape, weights: Weights) -> float:
    """Return the bytes of the policy's weights and adapter."""
    if weights.is_full:
        return 4 * shape.parameters()
    adapter = 4 * shape.adapter_parameters(weights.rank)
    if weights.trained == "lora":
        return 2 * shape.parameters() + adapter
    # Half a byte, and a scale of one byte per 64 weights, whose own scale is 4 bytes per 256: Dettmers et al. 2023,
    # arXiv 2305.14314. Embedding, head and norms stay in half precision.
    scales = (1 + 4 / 256) / 64
    packed = shape.linear_parameters() * (0.5 + scales)
    return packed + 2 * (shape.embedding_parameters() + shape.other_parameters()) + adapter


def optimizer_bytes(optimizer: str) -> float:
    """Return the bytes of both of Adam's moments per trained parameter.

    Args:
        optimizer: `adamw`, or `adamw_8bit` with a scale of 4 bytes per 256 entries.
    """
    return 8.0 if optimizer == "adamw" else 2 * (1 + 4 / 256)


def rollout_bytes(sizes: RunSizes) -> float:
    """Return the bytes of the episodes of an iteration."""
    # ids of 8 bytes and a mask; six numbers in float32 per response token
    return sizes.sampled_rows * (9 * sizes.width + 24 * sizes.response)


def smallest_gpu(needed: float) -> int | None:
    """Return the GiB of the smallest GPU that fits, None if none of `GPUS` does.

    Args:
        needed: bytes.
    """
    return next((size for size in sorted(GPUS) if needed <= size * GIB * (1 - RESERVE)), None)
