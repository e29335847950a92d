"""Groups of responses to one prompt that are kept or dropped as one, and baselines over what is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ippo_lightning.algorithms import AdvantageEstimator
from ippo_lightning.errors import UserError
from ippo_lightning.records import UpdatePlan
from ippo_lightning.selection.table import RolloutTable

WholeGroups = Literal["mean", "sum"]
Baselines = Literal["all", "kept"]


def by_group(table: RolloutTable, *, how: WholeGroups) -> tuple[RolloutTable, Tensor]:
    """Return the table of groups: one row per group, with the mean or the sum of each column over its rows.

    Args:
        table: with the column `groups`, of rows that may still be kept.
        how: "mean" or "sum".

    Returns:
        The table, and the row of each row's group in it, shape [rows], int64.
    """
    # On the CPU, whose sums have one order: each rank makes this table, and all of them must decide alike.
    numbers, members = table.groups.cpu().unique(return_inverse=True)
    counts = members.bincount(minlength=len(numbers))

    def reduced(column: Tensor) -> Tensor:
        sums = torch.zeros(len(numbers), dtype=column.dtype).index_add(0, members, column.cpu())
        return (sums / counts if how == "mean" else sums).to(column.device)

    device = table.kept.device
    columns = {name: reduced(column) for name, column in table.columns.items() if name != "groups"}
    every = torch.ones(len(numbers), dtype=torch.bool, device=device)
    grouped = replace(
        table,
        columns={**columns, "groups": numbers.to(device)},
        kept=every,
        force_keep=~every,
        force_drop=~every,
        group_scores=torch.stack([reduced(scores) for scores in table.group_scores])
        if len(table.group_scores)
        else table.group_scores.new_zeros(0, len(numbers)),
        mine=slice(0, len(numbers)),  # as of any part of a table
    )
    return grouped, members.to(device)


def require_groups(module: Any, *, whole_groups: WholeGroups | None, baselines: Baselines) -> None:
    """Refuse settings that have no meaning for the module's algorithm.

    Args:
        module: under training; one without an advantage estimator of this library may have any algorithm.
        whole_groups: see `InfluenceFilter`.
        baselines: see `InfluenceFilter`.

    Raises:
        UserError: whole groups where no responses are compared, or other baselines where there is none to compute.
    """
    own = getattr(module, "advantages", None)
    estimator = own if isinstance(own, AdvantageEstimator) else None
    if whole_groups is not None and estimator is not None and not estimator.needs_groups:
        raise UserError(
            f"InfluenceFilter.whole_groups: {whole_groups}, and {type(estimator).__name__} compares no responses to "
            "one prompt; use GroupBaseline or LeaveOneOut, or null"
        )
    if baselines == "kept" and (estimator is None or estimator.needs_values):
        found = "no advantage estimator" if estimator is None else f"{type(estimator).__name__}, which needs a critic"
        raise UserError(
            f"InfluenceFilter.baselines: kept, and {type(module).__name__} has {found}; expected GroupBaseline, "
            "LeaveOneOut or GlobalBaseline, or all"
        )


def renew_baselines(plan: UpdatePlan, module: Any) -> None:
    """Estimate the advantages of the kept rows again, as if the others had not been sampled; all ranks call this.

    Args:
        plan: after its rows are chosen; a rank may have no row left.
        module: has `compute_advantages(episodes)`.
    """
    kept = plan.keep.nonzero().flatten()
    renewed = module.compute_advantages(plan.episodes.select(kept)).advantages
    advantages = plan.episodes.advantages.clone()
    # `select` leaves out columns that are padding in all of these rows, where the old advantages are 0.
    advantages[kept, : renewed.shape[1]] = renewed.to(advantages)
    plan.replace_advantages(advantages, reason="baselines of the kept rows")
