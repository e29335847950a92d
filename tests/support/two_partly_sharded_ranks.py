"""What each of two processes does with a network of which only a part is sharded over them (FSDP2).

python forked_ranks.py two_partly_sharded_ranks.py FOLDER
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed import init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ippo_lightning.distributed.collectives import end_process_group
from ippo_lightning.distributed.dtensor import full_tensor
from ippo_lightning.errors import UserError
from ippo_lightning.influence import influence_scores, target_gradient
from ippo_lightning.influence.model_state import trainable_parameters
from ippo_lightning.selection.settings import ScoringSettings
from ippo_lightning.selection.target_gradients import TargetGradientCache
from ippo_lightning.selection.targets import TargetLoss

CASES = {
    "both train": (),
    "the sharded part is frozen": ("body",),
    "the full part is frozen": ("head",),
    "both train, and a forward leaves parameters in full": (),
}
"""Name to the parts that do not train. FSDP2 leaves the parameters of its outermost module in full by default."""
ROWS = 6
METHODS = ("hooks", "finite_difference")


class Net(nn.Module):
    """A body that is sharded and a head that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(torch.tanh(self.body(inputs))).squeeze(-1)
        return outputs


def net(frozen: tuple[str, ...]) -> Net:
    """Return the network with the same weights in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net().double()
    for name in frozen:
        getattr(model, name).requires_grad_(False)
    return model


def rows_of(numbers: list[int], *, seed: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of some rows."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(ROWS, 4, generator=generator, dtype=torch.float64)
    targets = torch.randn(ROWS, generator=generator, dtype=torch.float64)
    return inputs[numbers], targets[numbers]


def errors(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return one loss per row."""
    inputs, targets = batch
    return (model(inputs) - targets).square()


def mean_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the loss of a target."""
    return errors(model, batch).mean()


def results_of(model: nn.Module, numbers: list[int]) -> dict[str, Tensor]:
    """Return the target gradient, and the scores of some rows along it."""
    direction = target_gradient(model, mean_error, [rows_of(numbers, seed=1)])
    found = {f"direction.{name}": full_tensor(block) for name, block in direction.items()}
    for method in METHODS:
        batches = [rows_of(part, seed=2) for part in (numbers[:2], numbers[2:])]
        found[f"scores.{method}"] = influence_scores(model, errors, batches, direction, method=method)
        # the next forward of the run
        found[f"after.{method}"] = model(rows_of(numbers, seed=2)[0]).detach()
    return found


def no_memory(model: nn.Module, batch: object) -> Tensor:
    """Fail as a device without memory does, on the ranks alike so that none waits."""
    raise torch.OutOfMemoryError("out of memory")


def main(folder: Path, *_: str) -> None:
    init_process_group("gloo")
    rank = torch.distributed.get_rank()
    warnings.simplefilter("ignore")
    mesh = init_device_mesh("cpu", (2,))
    numbers: dict[str, str] = {}
    for name, frozen in CASES.items():
        model = net(frozen)
        fully_shard(model.body, mesh=mesh, reshard_after_forward="in full" not in name)
        with torch.no_grad():
            model(torch.zeros(1, 4, dtype=torch.float64))
        if not frozen:
            found = trainable_parameters(model)
            numbers[name] = str([key for key, value in found.items() if isinstance(value, DTensor)])
        torch.save(results_of(model, [0, 2, 4] if rank == 0 else [1, 3, 5]), folder / f"{name}.rank{rank}.pt")
    target = TargetLoss(no_memory, [{"rows": [0, 1, 2, 3]}])
    try:
        TargetGradientCache(ScoringSettings()).take(model, lambda: target, iteration=0)
    except UserError as error:
        numbers["no memory"] = str(error)
    (folder / f"rank{rank}.json").write_text(json.dumps(numbers), encoding="utf-8")
    end_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
