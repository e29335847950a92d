"""Episodes of environments: fragments of trajectories, or single transitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ippo_lightning.records.episodes import Episodes, step_column


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlEpisodes(Episodes):
    """What happened in environments; a row is one environment's fragment, or after `transitions` one step of it.

    A step that is no transition, as the reset step of gymnasium's next-step autoreset, has mask False.
    """

    observations: Tensor = step_column(has_features=True)
    """[rows, steps, *features] what the policy saw."""
    actions: Tensor = step_column(has_features=True)
    """[rows, steps] int64, or [rows, steps, *features] float."""
    next_values: Tensor = step_column()
    """[rows, steps] the critic's estimate of the state after each step."""
    # Padding counts as ended: no value bootstraps across it, and no trace runs through it.
    terminated: Tensor = step_column(fill=True)
    """[rows, steps] bool, True where the environment ended by itself: nothing comes after it."""
    done: Tensor = step_column(fill=True)
    """[rows, steps] bool, True where the next step belongs to another episode (terminated, or cut by a limit)."""

    row_name: ClassVar[str] = "row"

    def describe(self, row: int) -> str:
        """Return the environment of the row."""
        return f"environment {int(self.group[row])}"

    def transitions(self) -> ControlEpisodes:
        """Return one row per step that counts, shape [transitions, 1]; call it after the advantages are known.

        Advantages need time, and nothing after them does: this is the record of IIF (Hu et al. 2025, arXiv 2505.19281).
        The outcome reward of a transition is its own reward; it is truncated where its episode was cut by a limit.
        """
        # `nonzero` goes row by row, so the steps of an environment stay next to each other and in order.
        environment, step = self.mask.nonzero(as_tuple=True)
        changes = {
            name: getattr(self, name)[environment, step].unsqueeze(1)
            for name, layout in self.columns().items()
            if layout.axis == "steps"
        }
        cut = self.done & ~self.terminated
        return self.evolve(
            **changes,
            outcome_rewards=self.rewards[environment, step],
            truncated=cut[environment, step],
            group=self.group[environment],
        )
