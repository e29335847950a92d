"""Settings of `ippo diagnose`, `ippo trace` and `ippo intervene`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ippo_lightning.errors import UserError, require_choice, require_range

# As in `ippo_lightning.analysis`, whose imports take seconds.
TargetName = Literal["auto", "run", "return", "reward"]
Baseline = Literal["auto", "states", "critic"]


@dataclass(frozen=True, kw_only=True)
class DiagnoseSettings:
    """What `ippo diagnose` shows.

    Args:
        iteration: counted from 0; null for the latest that was kept.
        records: how many with the lowest scores, and as many with the highest; null for 100 in environments and 20
            responses, and fewer of a small buffer.
        target: what scores are about: `run` for those that the run's own filter made, `return` for the return of the
            buffer, `reward` for the average reward of responses; `auto` is `run` if there are such scores, else
            `return` in environments and `reward` for responses.
        baseline: of the Monte-Carlo advantage in environments: `states` compares records of the same observation,
            `critic` subtracts the critic's value; `auto` is `states` if observations repeat.
        seed: of the random records that the lowest are compared with.
        output: folder of the page; by default `diagnosis/iteration_N` in that of the run.

    Raises:
        UserError: a number out of its range.
    """

    iteration: int | None = None
    records: int | None = None
    target: TargetName = "auto"
    baseline: Baseline = "auto"
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        _check(self.iteration, self.output)
        if self.records is not None:
            require_range("records", self.records, at_least=1, integer=True)
        require_range("seed", self.seed, at_least=0, integer=True)
        require_choice("target", self.target, get_args(TargetName))
        require_choice("baseline", self.baseline, get_args(Baseline))


@dataclass(frozen=True, kw_only=True)
class TraceSettings:
    """What `ippo trace` shows.

    Args:
        output: folder of the page; by default `trace` in that of the run.

    Raises:
        UserError: a number out of its range.
    """

    output: str | None = None

    def __post_init__(self) -> None:
        _check(None, self.output)


@dataclass(frozen=True, kw_only=True)
class InterveneSettings:
    """What `ippo intervene` compares.

    Args:
        iteration: counted from 0; null for all that were kept.
        output: folder of the page; by default `intervention` in that of the run.

    Raises:
        UserError: a number out of its range.
    """

    iteration: int | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        _check(self.iteration, self.output)


def _check(iteration: int | None, output: str | None) -> None:
    if iteration is not None:
        require_range("iteration", iteration, at_least=0, integer=True)
    if output == "":
        raise UserError("output: no value given")


SETTINGS = {"diagnose": DiagnoseSettings, "trace": TraceSettings, "intervene": InterveneSettings}
"""By command."""
