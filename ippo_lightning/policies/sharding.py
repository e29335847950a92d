"""Divide a policy over ranks with torch's fully_shard (FSDP2): each rank holds a part of every parameter.

Source: Zhao et al. 2023, PyTorch FSDP, arXiv 2304.11277; Rajbhandari et al. 2020, ZeRO, arXiv 1910.02054 (stage 3).
"""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from ippo_lightning.errors import UserError
from ippo_lightning.policies.causal_lm import CausalLMPolicy
from ippo_lightning.policies.loading import transformers_model
from ippo_lightning.policies.quantized import has_8bit_layers


def shard_policy(policy: CausalLMPolicy, mesh: DeviceMesh, *, gather_for_sampling: bool = True) -> None:
    """Divide the language model, the critic and a copied reference over the ranks of a mesh.

    Every transformer layer is gathered for its own forward and backward and freed again; so are embedding and head.
    Make the optimizer afterwards: the parameters are new objects.

    Args:
        policy: whole, the same on every rank; changed in place.
        mesh: one-dimensional; on a GPU's mesh the parts are put there.
        gather_for_sampling: gather all layers once for a batch of responses, and free them after it, instead of once a
            token. Costs the memory of the whole language model while sampling.

    Raises:
        UserError: the weights are in 8 bits; bitsandbytes loses their scales when they are gathered.
    """
    if has_8bit_layers(policy):
        raise UserError(
            "fabric.strategy: fsdp2 cannot divide the 8-bit weights of bitsandbytes; use ddp, where each rank holds "
            "the whole base, or quantization: nf4"
        )
    networks: list[nn.Module] = [policy.language_model]
    if policy.reference_model is not None:
        networks.append(transformers_model(policy.reference_model))
    if policy.value_head is not None:
        networks.append(policy.value_head.linear)
    if policy.critic is not None:  # its head is in float32, which one unit cannot hold next to bfloat16
        networks += [policy.critic.head.linear, policy.critic]
    for network in networks:
        for layer in [*transformer_layers(network), network]:
            # explicit: torch leaves the outermost unit gathered after a forward, and its parameters out of reach
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    policy.gather_for_sampling = gather_for_sampling


def unknown_sharding(option: str, strategy: object, *, instead: str) -> UserError:
    """Return the error for a strategy that divides parameters behind one wrapper, as FSDP1 and DeepSpeed do.

    Args:
        option: where it was chosen.
        strategy: of a Fabric or a Trainer.
        instead: the strategy that divides them layer by layer.
    """
    return UserError(
        f"{option}: {type(strategy).__name__} divides the parameters in a way that sampling and influence scores do "
        f"not know; use {instead}, or ddp"
    )


def transformer_layers(network: nn.Module) -> list[nn.Module]:
    """Return the repeated layers of a transformer: those of its longest list of modules of one type.

    Args:
        network: a language model, or anything; empty where it holds no such list.
    """
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    alike = [entry for entry in lists if len({type(layer) for layer in entry}) == 1]
    sizes = [sum(parameter.numel() for parameter in entry.parameters()) for entry in alike]
    return list(alike[sizes.index(max(sizes))]) if alike else []
