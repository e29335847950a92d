"""The check of a few scores against plain autograd: it allows for rounding and finds what is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ippo_lightning.influence.checksum import HALF_TOLERANCE, verify_checksum
from ippo_lightning.influence.coverage import Block
from ippo_lightning.influence.refusals import ChecksumError

WIDTH = 1000
"""Each part is a sum of so many small products, as in a real layer: rounding of a single one says little."""


def case(*, error: float) -> tuple[Tensor, dict[str, Tensor], list[list[Block]]]:
    """Two layers whose parts of a score nearly cancel; the second part is wrong by a fraction of itself."""
    layers = nn.ModuleDict({name: nn.Linear(WIDTH, 1, bias=False) for name in ("first", "second")})
    blocks = [Block(name, layer.weight, torch.ones(1, WIDTH)) for name, layer in layers.items()]
    slopes = {"first": torch.tensor([1.0, 2.0]), "second": torch.tensor([-0.99, -1.98])}
    losses = sum(slopes[name] * layer.weight.mean() for name, layer in layers.items())
    parts = {name: slope[None].clone() for name, slope in slopes.items()}
    parts["second"] *= 1 + error
    assert isinstance(losses, Tensor)
    return losses, parts, [blocks]


def check(error: float, *, is_coarse: bool) -> None:
    losses, parts, directions = case(error=error)
    verify_checksum(losses, sum(parts.values()), directions, is_coarse=is_coarse, parts=parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [0.0, 0.004, -0.004, HALF_TOLERANCE])
def test_rounding_of_parts_that_nearly_cancel_is_no_error_in_half_precision(error: float) -> None:
    # 0.004 is the rounding unit of bfloat16. The scores are a hundredth of their parts, and off by 40 %.
    check(error, is_coarse=True)


@pytest.mark.parametrize(("error", "is_coarse"), [(0.1, True), (-0.1, True), (0.004, False)])
def test_a_part_that_is_wrong_is_found(error: float, is_coarse: bool) -> None:
    with pytest.raises(ChecksumError, match="the weighted sum of the scores of 2 episodes"):
        check(error, is_coarse=is_coarse)
