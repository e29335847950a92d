"""The first number that is not finite, module by module, against modules that break where a test says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_parts import TINY, tiny_policy

from ippo_lightning.modules.pass_numbers import Numbers, PassNumbers, numbers_of


class Breaks(nn.Module):
    """Linear, and then NaN or infinity in one direction."""

    def __init__(self, forward: float = 0.0, backward: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.forward_value, self.backward_value = forward, backward

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.linear(inputs)
        if self.backward_value:
            # Outside of any inner module: only this one can be named.
            outputs = outputs * 1.0
            outputs.register_hook(lambda gradient: gradient + self.backward_value)
        return outputs + self.forward_value


def recorded(model: nn.Module) -> PassNumbers:
    torch.manual_seed(0)
    numbers = PassNumbers(model)
    with numbers.recording():
        model(torch.randn(2, 3)).square().sum().backward()
    return numbers


def chain(**fault: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), Breaks(), Breaks(**fault), nn.Tanh(), Breaks())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_module_that_breaks_the_forward_is_named(value: float) -> None:
    numbers = recorded(chain(forward=value))
    assert numbers.forward.breaks is numbers.places["2"]
    assert numbers.forward.seen is numbers.places["2"]
    assert numbers.places["2"].input is not None
    assert not numbers.places["2"].input.broken
    assert str(numbers.places["2"].output) == ("NaN" if math.isnan(value) else "inf")
    assert numbers.places["1"].output is not None
    assert not numbers.places["1"].output.broken


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_module_that_breaks_the_backward_is_named(value: float) -> None:
    numbers = recorded(chain(backward=value))
    assert numbers.forward.seen is None
    assert numbers.backward.breaks is numbers.places["2"]
    # The gradient meets the output of its linear layer first.
    assert numbers.backward.seen is numbers.places["2.linear"]
    assert numbers.places["3"].is_finite
    assert not numbers.places["0"].is_finite


def test_a_fault_in_the_loss_belongs_to_no_module() -> None:
    model = chain()
    numbers = PassNumbers(model)
    with numbers.recording():
        (model(torch.randn(2, 3)).sum() * math.inf).backward()
    assert numbers.backward.breaks is None
    assert numbers.backward.seen is numbers.places["4"]


def test_the_gradient_of_a_module_s_input_is_its_own_where_several_read_one_tensor() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            shared = self.stem(inputs)
            return self.first(shared) + 1e6 * self.second(shared)  # type: ignore[no-any-return]

    model = Two()
    numbers = PassNumbers(model)
    with numbers.recording():
        model(torch.randn(2, 3)).sum().backward()
    for name, factor in (("first", 1.0), ("second", 1e6)):
        expected = float((factor * getattr(model, name).weight.detach().sum(dim=0)).abs().max())
        found = numbers.places[name].input_gradient
        assert found is not None
        assert found.largest == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_recording_changes_no_output_and_leaves_no_hook(attention: str, checkpointing: bool) -> None:
    policy = tiny_policy(
        config={**TINY, "num_hidden_layers": 2},
        attn_implementation=attention,
        gradient_checkpointing=checkpointing,
        self_check=False,
    )
    encoded = policy.text.encode_demonstrations(["1+2?", "7?"], ["1+2=3;#3", "#7"], max_length=64)

    def once(around: Callable[[], Any]) -> tuple[Tensor, list[Tensor]]:
        policy.zero_grad()
        with around():
            log_probs = policy(*encoded, with_values=True).log_probs
            log_probs.sum().backward()
        return log_probs.detach(), [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]

    plain, gradients = once(torch.enable_grad)
    gradients = [gradient.clone() for gradient in gradients]
    numbers = PassNumbers(policy)
    watched, others = once(numbers.recording)
    assert torch.equal(plain, watched)
    for one, other in zip(gradients, others, strict=True):
        # A tensor that several modules read has its gradients added in another order.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert all(place.is_finite for place in numbers.places.values())
    assert numbers.forward.seen is None
    assert numbers.backward.seen is None
    layer = numbers.places["model.model.layers.1.mlp.down_proj"]
    assert None not in (layer.input, layer.output, layer.output_gradient, layer.input_gradient)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in policy.model.model.layers.modules())


@pytest.mark.parametrize(
    ("values", "largest", "broken"),
    [
        ([1.0, -4.0], 4.0, ""),
        ([1.0, math.nan, math.inf], 1.0, "NaN"),
        ([-math.inf, 2.0], 2.0, "inf"),
        ([math.nan], 0.0, "NaN"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_of_a_tensor(values: list[float], largest: float, broken: str, dtype: torch.dtype) -> None:
    assert numbers_of(torch.tensor(values, dtype=dtype)) == Numbers(largest, broken)
