"""Fabric's FSDP2 for a policy: `fabric.strategy: fsdp2`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from lightning.fabric.strategies import STRATEGY_REGISTRY, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from ippo_lightning.errors import UserError
from ippo_lightning.policies.sharding import shard_policy, unknown_sharding

if TYPE_CHECKING:
    from ippo_lightning.modules import BaseModule

NAME = "fsdp2"


class ShardedStrategy(ModelParallelStrategy):
    """Shards parameters, gradients and optimizer state over all ranks; see `shard_policy`.

    Args:
        gather_for_sampling: gather the language model once per batch of responses; False gathers layer by layer for
            every token, if the full model does not fit on a rank.
        process_group_backend: as in `ModelParallelStrategy`.
    """

    def __init__(self, gather_for_sampling: bool = True, process_group_backend: str | None = None) -> None:
        super().__init__(
            self._sharded,
            data_parallel_size="auto",
            tensor_parallel_size=1,
            process_group_backend=process_group_backend,
        )
        self.gather_for_sampling = gather_for_sampling

    def setup_environment(self) -> None:
        """Start the process group; the mesh is all ranks."""
        # Lightning's "auto" would shard over machines only, and use the ranks of each machine for tensor parallelism.
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def _sharded(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        policy = getattr(module, "policy", None)
        if policy is None:
            raise UserError(f"fabric.strategy: {NAME} shards a module's `policy`; {type(module).__name__} has none")
        shard_policy(policy, mesh["data_parallel"], gather_for_sampling=self.gather_for_sampling)
        return module.to(self.root_device)  # what is not sharded, for instance the state of metrics


def limit_waiting(strategy: object, *, seconds: float) -> None:
    """Let the collectives of ranks that are about to be launched wait so long for a rank that does not answer.

    Args:
        strategy: of the Fabric; one for a single process does not change.
        seconds: torch's own default is half an hour.
    """
    # Lightning hands this on to torch's process group. Its strategies take it as an argument, and a YAML has no word
    # for a span of time.
    if hasattr(strategy, "_timeout"):
        strategy._timeout = timedelta(seconds=seconds)


def require_supported(strategy: object, module: BaseModule) -> None:
    """Refuse strategies that shard parameters in other ways: sampling and influence scores do not support them.

    Args:
        strategy: of the Fabric.
        module: its optimizer is checked.

    Raises:
        UserError: another sharding strategy than ours, or an optimizer that does not support sharding.
    """
    if isinstance(strategy, ShardedStrategy):
        # The optimizers of bitsandbytes know no sharded tensors.
        if module.optimizer_settings.kind != "adamw":
            raise UserError(
                f"optimizer.kind: {module.optimizer_settings.kind} does not support sharded parameters; use adamw with "
                f"fabric.strategy {NAME}"
            )
    elif isinstance(strategy, (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)):
        raise unknown_sharding("fabric.strategy", strategy, instead=NAME)


STRATEGY_REGISTRY.register(
    NAME,
    ShardedStrategy,
    description="FSDP2 over all ranks, for the modules of ippo-lightning",
    override=True,  # the module may be imported again under a reload
)
