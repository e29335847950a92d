"""Weights that contain NaN or infinity: named before a forward reads them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ippo_lightning.distributed.dtensor import are_finite, is_sharded, local


def trainable_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that training can change, by name; frozen ones stay as they were loaded."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def broken_weights(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the weights that contain NaN or infinity, in their order.

    Args:
        weights: by name; if they are sharded, every rank must call this.
    """
    flags = are_finite(list(weights.values()))
    return [name for name, is_finite in zip(weights, flags, strict=True) if not is_finite]


def require_finite_weights(weights: Mapping[str, Tensor], *, before: str) -> None:
    """Refuse weights that are not finite: all that a model computes with them is NaN.

    Costs one pass over the weights, about as much as sampling one token.

    Args:
        weights: by name; if they are sharded, every rank must call this.
        before: what would read them, for the message.

    Raises:
        FloatingPointError: one line that names the first such weight, and says how many there are.
    """
    names = broken_weights(weights)
    if names:
        raise FloatingPointError(f"{describe_broken(weights, names)} before {before}; {_ADVICE}")


def describe_broken(weights: Mapping[str, Tensor], names: list[str]) -> str:
    """Return one clause that names weights which are not finite.

    Args:
        weights: by name.
        names: from `broken_weights`, at least one.
    """
    first = local(weights[names[0]].detach())
    kind = "NaN" if bool(first.isnan().any()) else "infinity"
    more = f" and {len(names) - 1} more of {len(weights)} weights" if len(names) > 1 else ""
    return f"weights: {names[0]}{more} contain{'' if more else 's'} {kind}"


def explain_broken_output(module: nn.Module) -> str:
    """Return one clause about the weights of a model whose output is not finite.

    Args:
        module: any.
    """
    # Another rank may have finite outputs, and would not take part in a sum over its shards.
    if is_sharded(module):
        return "the parameters are sharded, and their weights were not looked at"
    weights: dict[str, Tensor] = dict(module.named_parameters())
    names = broken_weights(weights)
    if names:
        advice = _ADVICE if weights[names[0]].requires_grad else "it is frozen, so its file or its dtype broke it"
        return f"{describe_broken(weights, names)}; {advice}"
    # Large weights are finite themselves, and their products are not.
    sizes = {name: float(weight.detach().abs().max()) for name, weight in weights.items() if weight.numel()}
    largest = max(sizes, key=lambda name: sizes[name])
    return f"the weights are finite, the largest is {sizes[largest]:.3g} in {largest}"


_ADVICE = "an earlier optimizer step broke them; try a lower learning rate or fp32, from a checkpoint before that step"
