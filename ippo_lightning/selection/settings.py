"""How episodes are scored, as settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from ippo_lightning.errors import require_choice, require_range
from ippo_lightning.influence import Method, Normalisation
from ippo_lightning.records.pass_size import MaxTokens, require_max_tokens


@dataclass(frozen=True, kw_only=True)
class ScoringSettings:
    """How episodes are scored.

    Args:
        method: see `ippo_lightning.influence.influence_scores`. `hooks` is exact and costs one forward and one
            backward; `finite_difference` costs one forward if the losses at sampling are stored, else two.
        normalise: `none` as in the paper, `cosine`, or `length`, which divides by the number of steps that count.
        adam_aware: scale the target gradient by 1 / (sqrt(v) + eps) of the optimizer's state. The score is then the
            first-order effect of an Adam step. Before the first step it is that of a plain gradient step.
        include: patterns of parameter names that count, for example `*layers.3*`; null for all.
        exclude: patterns of parameter names that do not count.
        refresh_every_n_iterations: take the target gradient again every n-th iteration, >= 1.
        max_tokens: tokens of a scoring pass, padding included; `auto` is 16384 on a CPU, and what the memory of a GPU
            allows. Halved if the device's memory is too small.
        health_every_n_iterations: split the demonstrations into groups every n-th iteration, to see how far the groups
            agree, on a sample of episodes that costs at most 5 % of scoring; 0 for never. In full fine-tuning one group
            is scored after the other, which saves memory and costs up to three times that.
        health_groups: number of groups, >= 2.

    Raises:
        UserError: a number out of its range.
    """

    method: Method = "hooks"
    normalise: Normalisation = "none"
    adam_aware: bool = False
    include: list[str] | None = None
    exclude: list[str] = field(default_factory=list)
    refresh_every_n_iterations: int = 1
    max_tokens: MaxTokens = "auto"
    health_every_n_iterations: int = 10
    health_groups: int = 8

    def __post_init__(self) -> None:
        lowest = {"refresh_every_n_iterations": 1, "health_every_n_iterations": 0, "health_groups": 2}
        for name, bound in lowest.items():
            require_range(f"InfluenceFilter.scoring.{name}", getattr(self, name), at_least=bound, integer=True)
        require_max_tokens("InfluenceFilter.scoring.max_tokens", self.max_tokens)
        require_choice("InfluenceFilter.scoring.method", self.method, get_args(Method))
        require_choice("InfluenceFilter.scoring.normalise", self.normalise, get_args(Normalisation))
