"""The optimizer, its settings and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from ippo_lightning.errors import UserError, require_range

OptimizerKind = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "sgd"]


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW or plain gradient steps, and the learning-rate schedule.

    Args:
        kind: `adamw` is torch's; `adamw_8bit` keeps its moments in 8 bits, `paged_adamw` and `paged_adamw_8bit` move
            them to the host's memory if the device's is full (bitsandbytes). `sgd` subtracts the gradient times the
            learning rate; `betas` and `epsilon` are Adam's alone.
        learning_rate: peak learning rate, at most 1.
        value_learning_rate: of the value head or critic; null for the same.
        betas: decay of Adam's first and second moment.
        epsilon: added to Adam's root, >= 1e-30; PPO for language models is sensitive to it (1e-5 is common).
        weight_decay: decoupled; at most 1 / learning rate.
        schedule: after the warm-up: `constant`, or `linear` or `cosine` down to zero at the last iteration.
        warmup_iterations: iterations over which the rate rises linearly from zero.

    Raises:
        UserError: a number out of its range.
    """

    kind: OptimizerKind = "adamw"
    learning_rate: float = 1e-4
    value_learning_rate: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_iterations: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(OptimizerKind):
            kinds = ", ".join(get_args(OptimizerKind))
            raise UserError(f"optimizer.kind: {self.kind!r} is unknown; expected one of {kinds}")
        # Adam moves each weight by about the learning rate: above 1, one step replaces all that was learned.
        require_range("optimizer.learning_rate", self.learning_rate, above=0, at_most=1)
        if self.value_learning_rate is not None:
            require_range("optimizer.value_learning_rate", self.value_learning_rate, above=0, at_most=1)
        # float32 ends at 1e-38: an epsilon that rounds to 0 makes NaN, 0 / 0, of each weight whose gradient is 0.
        require_range("optimizer.epsilon", self.epsilon, at_least=1e-30, below=math.inf)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas: {self.betas} is out of range; expected two numbers in [0, 1)")
        # A step multiplies each weight by 1 - learning_rate * weight_decay, and below 0 that grows without end.
        highest = 1 / max(self.learning_rate, self.value_learning_rate or 0.0)
        require_range("optimizer.weight_decay", self.weight_decay, at_least=0, at_most=highest)
        require_range("optimizer.warmup_iterations", self.warmup_iterations, at_least=0, below=math.inf)


def build_optimizer(trainable: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> Optimizer:
    """Return the optimizer of some parameters; those of the critic are a group of their own if they need one.

    They need one for a learning rate of their own. Checkpoints with other groups of the same parameters continue.

    Args:
        trainable: by name; one with `value_head` or `critic` as a part of its path belongs to the critic.
        settings: see `OptimizerSettings`.

    Raises:
        UserError: there is no parameter.
    """
    if not trainable:
        raise UserError("policy: 0 trainable parameters; full fine-tuning or lora has some")
    policy, critic = (
        [parameter for name, parameter in trainable.items() if is_of_critic(name) == of_critic]
        for of_critic in (False, True)
    )
    value_rate = settings.value_learning_rate or settings.learning_rate
    is_of_torch = settings.kind in ("adamw", "sgd")
    # A step of small networks takes longer for two groups. bitsandbytes loads no state of other groups.
    if value_rate == settings.learning_rate and is_of_torch:
        policy, critic = [*policy, *critic], []
    groups = [{"params": policy, "lr": settings.learning_rate}, {"params": critic, "lr": value_rate}]
    # The schedule sets "lr" in each iteration, so the peak is kept beside it; torch's own schedulers use the same key.
    groups = [{**group, "initial_lr": group["lr"]} for group in groups if group["params"]]
    if settings.kind == "sgd":
        # The decay is part of the gradient here; without momentum, that is the decoupled one of AdamW.
        optimizer: Optimizer = SGD(groups, weight_decay=settings.weight_decay, foreach=True)
    else:
        # foreach: torch's choice on a GPU; on a CPU it gives the same bits with fewer calls
        extra = {"foreach": True} if is_of_torch else {}
        optimizer = _optimizer_class(settings.kind)(
            groups, betas=settings.betas, eps=settings.epsilon, weight_decay=settings.weight_decay, **extra
        )
    if is_of_torch:
        optimizer.register_load_state_dict_pre_hook(_in_groups_of)
    return optimizer


def _in_groups_of(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
    """Return a saved state in the groups of an optimizer; None if it has them, or is of other parameters.

    In checkpoints of earlier versions, the critic always has a group of its own, behind that of the policy.
    """
    sizes, saved = (
        [len(group["params"]) for group in groups] for groups in (optimizer.param_groups, state["param_groups"])
    )
    if sizes == saved or sum(sizes) != sum(saved):
        return None
    numbers = iter([number for group in state["param_groups"] for number in group["params"]])
    settings = state["param_groups"][0]
    return {**state, "param_groups": [{**settings, "params": list(islice(numbers, size))} for size in sizes]}


def is_of_critic(name: str) -> bool:
    """Return whether a parameter belongs to the value head or critic.

    Args:
        name: of the parameter.
    """
    # Any part of a name counts: the critic stands inside the policy, as in `policy.value_head.linear.weight`.
    return any(part in _CRITIC_NAMES for part in name.split("."))


def check_trained_dtypes(trained: Mapping[str, nn.Parameter]) -> None:
    """Refuse to train weights in half precision.

    Args:
        trained: by name.

    Raises:
        UserError: a parameter has fewer bits than float32.
    """
    half = [(name, p.dtype) for name, p in trained.items() if p.dtype in (torch.bfloat16, torch.float16)]
    if half:
        name, dtype = half[0]
        short, kind = str(dtype).removeprefix("torch."), "bf16" if dtype == torch.bfloat16 else "16"
        # bfloat16 keeps 8 bits: a step below 1/256 of a weight changes nothing, and most steps are smaller.
        raise UserError(
            f"policy.dtype: {name} would train in {short}, which rounds most steps of the optimizer away; "
            f"set policy.dtype: float32 and fabric.precision: {kind}-mixed (not {kind}-true), or add policy.lora"
        )


def _optimizer_class(kind: OptimizerKind) -> Callable[..., Optimizer]:
    if kind == "adamw":
        return AdamW
    from bitsandbytes import optim

    return {
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw": optim.PagedAdamW,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
    }[kind]


def learning_rate_factor(settings: OptimizerSettings, *, iteration: int, total: int | None) -> float:
    """Return what the peak learning rate is multiplied by, in [0, 1].

    Args:
        settings: warm-up and schedule.
        iteration: counted from 0.
        total: iterations of the whole run, or None if unknown (the rate then stays at its peak).
    """
    if iteration < settings.warmup_iterations:
        # + 1, because the first iteration takes steps too: at a rate of 0 they would be for nothing.
        return (iteration + 1) / (settings.warmup_iterations + 1)
    if settings.schedule == "constant" or not total or total <= settings.warmup_iterations:
        return 1.0
    progress = min((iteration - settings.warmup_iterations) / (total - settings.warmup_iterations), 1.0)
    return 1.0 - progress if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


_CRITIC_NAMES = frozenset({"value_head", "critic"})
