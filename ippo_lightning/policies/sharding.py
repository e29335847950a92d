"""Shard a policy over ranks with torch's fully_shard (FSDP2): each rank keeps a part of every parameter.

Source: Zhao et al. 2023, PyTorch FSDP, arXiv 2304.11277; Rajbhandari et al. 2020, ZeRO, arXiv 1910.02054 (stage 3).
"""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from ippo_lightning.errors import UserError
from ippo_lightning.policies.causal_lm import CausalLMPolicy
from ippo_lightning.policies.critic import SeparateCritic
from ippo_lightning.policies.loading import transformers_model
from ippo_lightning.policies.quantized import has_8bit_layers


def shard_policy(policy: CausalLMPolicy, mesh: DeviceMesh, *, gather_for_sampling: bool = True) -> None:
    """Shard the language model, the critic and a copied reference over the ranks of a mesh.

    Every transformer layer is gathered for its own forward and backward and freed afterwards; so are embedding and
    head. Build the optimizer after this call: the parameters are new objects.

    Args:
        policy: full, with the same weights on every rank; changed in place.
        mesh: one-dimensional; the shards go to its devices.
        gather_for_sampling: gather all layers once per batch of responses and free them after it, instead of once per
            token. Sampling then needs the memory of the full language model.

    Raises:
        UserError: the weights are in 8 bits; bitsandbytes loses their scales when ranks gather them.
    """
    if has_8bit_layers(policy):
        raise UserError(
            "fabric.strategy: fsdp2 cannot shard the 8-bit weights of bitsandbytes; use ddp, where each rank has "
            "the full base, or quantization: nf4"
        )
    networks: list[nn.Module] = [policy.language_model]
    if policy.reference_model is not None:
        networks.append(transformers_model(policy.reference_model))
    if policy.value_head is not None:
        networks.append(policy.value_head.linear)
    if isinstance(policy.critic, SeparateCritic):
        # its head is float32, and all parameters of one unit must have the same dtype
        networks += [policy.critic.head.linear, policy.critic]
    for network in networks:
        # The layers first: a unit takes the parameters that no unit inside of it has taken yet.
        for layer in [*transformer_layers(network), network]:
            # Explicit, because by default torch keeps the outermost unit gathered after a forward. Its parameters
            # would then be other objects than the optimizer's.
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    policy.gather_for_sampling = gather_for_sampling


def unknown_sharding(option: str, strategy: object, *, instead: str) -> UserError:
    """Return the error for a strategy that shards parameters behind one wrapper, as FSDP1 and DeepSpeed do.

    Args:
        option: the setting that chose it.
        strategy: of a Fabric or a Trainer.
        instead: the strategy that shards them layer by layer.
    """
    return UserError(
        f"{option}: {type(strategy).__name__} shards the parameters in a way that sampling and influence scores do "
        f"not support; use {instead}, or ddp"
    )


def transformer_layers(network: nn.Module) -> list[nn.Module]:
    """Return the repeated layers of a transformer: its largest list of modules of one type, by parameters.

    Args:
        network: any module; the result is empty if it contains no such list.
    """
    # By parameters and not by length: a mixture-of-experts layer contains lists of experts that may be longer.
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    alike = [entry for entry in lists if len({type(layer) for layer in entry}) == 1]
    sizes = [sum(parameter.numel() for parameter in entry.parameters()) for entry in alike]
    return list(alike[sizes.index(max(sizes))]) if alike else []
