"""Choose before sampling which prompts of a batch get responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning import Callback

from ippo_lightning.distributed.collectives import all_reduce_sum
from ippo_lightning.errors import UserError, require_range
from ippo_lightning.records import RolloutPlan, UpdatePlan
from ippo_lightning.selection import PromptRule
from ippo_lightning.selection.prompt_choice import (
    chosen_prompts,
    require_prompt_rule,
    sampled_rows,
    selected,
    table_of,
)


class PromptSelection(Callback):
    """Sample some prompts of each batch; a rule decides which.

    At `on_rollout_start`, each rank ranks the prompts of its own batch and samples the first ones. So the batch needs
    more prompts than an iteration samples: with `fraction: 0.25`, set `data.init_args.batch_size` to four times as
    many. At `on_rollout_end`, the rule learns from the rewards and advantages of all ranks.

    Args:
        rule: `RandomPrompts`, `IntermediateDifficulty`, `SourceBandit`, or a `PromptRule` of your own.
        fraction: fraction of the batch that is sampled, in (0, 1], rounded, at least one prompt.
        num_kept: number of prompts that each rank samples, >= 1, in place of `fraction`; a smaller batch is sampled as
            a whole.
        seed: of rules that draw.

    Raises:
        UserError: an argument out of its range; when a fit begins, a module without what the rule reads, or batches
            with no more prompts than are sampled.
    """

    def __init__(self, rule: PromptRule, fraction: float = 0.5, num_kept: int | None = None, seed: int = 0) -> None:
        super().__init__()
        require_range("PromptSelection.fraction", fraction, above=0, at_most=1)
        if num_kept is not None:
            require_range("PromptSelection.num_kept", num_kept, at_least=1, integer=True)
        require_range("PromptSelection.seed", seed, at_least=0, integer=True)
        if not isinstance(rule, PromptRule):
            raise UserError(f"PromptSelection.rule: got a {type(rule).__name__}; expected a PromptRule")
        self.rule = rule
        self.fraction = fraction
        self.num_kept = num_kept
        self.seed = seed
        self.iteration = 0
        self._numbers = (0, 0)

    @property
    def state_key(self) -> str:
        """Name of the state in a checkpoint: `lightning.Trainer` takes two of these only if their names differ."""
        return f"{super().state_key}[{self.rule.name}]"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check before the first iteration that there is something to choose, and from what.

        Raises:
            UserError: see the class.
        """
        if stage != "fit":
            return
        require_prompt_rule(self.rule, pl_module)
        if getattr(pl_module, "dynamic_sampling", None) is not None:
            raise UserError(
                "PromptSelection: model.dynamic_sampling takes other prompts of the batch, which the rule did not "
                "choose; leave out one of the two"
            )
        if getattr(pl_module, "pilot_commit", None) is not None:
            raise UserError("PromptSelection: model.pilot_commit chooses prompts, too; leave out one of the two")
        size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
        if self.num_kept is not None and isinstance(size, int) and size <= self.num_kept:
            raise UserError(
                f"PromptSelection.num_kept: {self.num_kept} of data.batch_size: {size} prompts leaves no choice; "
                "expected a larger batch"
            )

    def on_rollout_start(self, trainer: Any, pl_module: Any, plan: RolloutPlan) -> None:
        """Leave the chosen prompts in the plan.

        Raises:
            UserError: the batch has no prompts, or the rule returned no ranking.
        """
        batch: Any = plan.batch
        if not isinstance(batch, Mapping) or not {"prompts", "examples"} <= batch.keys():
            raise UserError("PromptSelection: the batch has no prompts and examples; expected batches of texts")
        offered = len(batch["prompts"])
        num_kept = self.num_kept or max(round(self.fraction * offered), 1)
        values = pl_module.prompt_values(batch["prompts"]) if "values" in self.rule.needs else None
        table = table_of(
            self.rule,
            batch,
            num_kept=min(num_kept, offered),
            seed=self.seed,
            iteration=self.iteration,
            values=values,
        )
        places = chosen_prompts(self.rule, table)
        self.iteration += 1
        self._numbers = (offered, len(places))
        counts = plan.counts[places]
        plan.replace_prompts(selected(batch, places), counts=counts, reason=f"PromptSelection({self.rule.name})")

    def on_rollout_end(self, trainer: Any, pl_module: Any, plan: UpdatePlan) -> None:
        """Let the rule learn from the rows of all ranks, and log how many prompts were sampled."""
        # A rule without a memory costs no collective; the rule is the same on all ranks.
        if type(self.rule).learn is not PromptRule.learn:
            self.rule.learn(sampled_rows(self.rule, plan.episodes))
        numbers = torch.tensor(self._numbers, dtype=torch.float64, device=plan.episodes.device)
        offered, sampled = all_reduce_sum(numbers).tolist()
        plan.record(rollout__prompts_offered=offered, rollout__prompts_sampled=sampled)

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration count and what the rule remembers."""
        return {"iteration": self.iteration, "rule": self.rule.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.iteration = int(state_dict["iteration"])
        self.rule.load_state_dict(state_dict["rule"])
