"""Lightning's own quantisation converts frozen layers only, and is refused for models of transformers."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from lightning.fabric import Fabric
from lightning.fabric.plugins.precision import BitsandbytesPrecision
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from training_parts import tiny_module

from ippo_lightning.errors import UserError
from ippo_lightning.influence import influence_scores, target_gradient
from ippo_lightning.policies.fabric_quantization import quantize_frozen_layers_only
from ippo_lightning.policies.quantized import dequantized_weight


class Actor(nn.Module):
    """A policy for control, which is not a model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.head = nn.Linear(64, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))


def adapted_actor() -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["body.0", "body.2"], modules_to_save=["head"])
    actor = get_peft_model(Actor(), config)  # type: ignore[arg-type]
    for name, parameter in actor.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return actor


def test_only_frozen_layers_are_converted() -> None:
    actor = adapted_actor()
    precision = BitsandbytesPrecision("nf4", dtype=torch.float32)
    quantize_frozen_layers_only(precision, actor)
    precision.convert_module(actor)
    kinds = {
        name: isinstance(child, Linear4bit) for name, child in actor.named_modules() if isinstance(child, nn.Linear)
    }
    assert {name for name, is_quantized in kinds.items() if is_quantized} == {
        "base_model.model.body.0.base_layer",
        "base_model.model.body.2.base_layer",
        "base_model.model.head.original_module",
    }
    trainable = [name for name, parameter in actor.named_parameters() if parameter.requires_grad]
    assert len(trainable) == 2 * 2 + 2
    assert not any(kinds[name.rpartition(".")[0]] for name in trainable)


def test_the_plugin_alone_quantises_adapters() -> None:
    actor = adapted_actor()
    BitsandbytesPrecision("nf4", dtype=torch.float32).convert_module(actor)
    assert any(isinstance(child, Linear4bit) for name, child in actor.named_modules() if "lora_A" in name)


def test_a_module_without_frozen_layers_is_refused() -> None:
    with pytest.raises(UserError, match="finds no frozen linear layer to quantise"):
        quantize_frozen_layers_only(BitsandbytesPrecision("nf4"), Actor())


def test_other_precisions_do_not_change() -> None:
    precision = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed").strategy.precision
    quantize_frozen_layers_only(precision, Actor())
    assert not hasattr(precision, "ignore_modules")


def test_a_language_model_is_refused_and_the_message_names_its_own_quantisation() -> None:
    with pytest.raises(UserError, match=r"remove it and set policy\.quantization to nf4, fp4 or int8"):
        quantize_frozen_layers_only(BitsandbytesPrecision("nf4"), tiny_module())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="Lightning's plugin quantises on CUDA only")
def test_scores_on_lightnings_four_bits_are_those_of_the_dequantised_weights() -> None:
    fabric = Fabric(accelerator="cuda", devices=1, plugins=BitsandbytesPrecision("nf4", dtype=torch.float32))
    actor = adapted_actor()
    quantize_frozen_layers_only(fabric.strategy.precision, actor)
    fabric.setup(actor)
    dense = adapted_actor().to(fabric.device)
    for (_, layer), (_, twin) in zip(actor.named_modules(), dense.named_modules(), strict=True):
        if isinstance(layer, Linear4bit):
            twin.weight.data = dequantized_weight(layer).to(twin.weight)  # type: ignore[union-attr,operator]
    batch = torch.randn(6, 64, device=fabric.device)

    def losses(model: nn.Module, inputs: Tensor) -> Tensor:
        return model(inputs).float().square().mean(dim=1)

    found = []
    for model in (actor, dense):
        direction = target_gradient(model, lambda model, inputs: losses(model, inputs).mean(), [batch])
        found.append(influence_scores(model, losses, [batch], direction))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)
