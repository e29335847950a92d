"""Settings of `ippo diagnose`, `ippo trace` and `ippo intervene`."""

from __future__ import annotations

from dataclasses import dataclass

from ippo_lightning.errors import UserError, require_range


@dataclass(frozen=True, kw_only=True)
class DiagnoseSettings:
    """What `ippo diagnose` shows.

    Args:
        iteration: counted from 0; null for the latest that was kept.
        output: folder of the page; by default `diagnosis/iteration_N` in that of the run.

    Raises:
        UserError: a number out of its range.
    """

    iteration: int | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        _check(self.iteration, self.output)


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
        every: of all kept iterations, take every n-th, from the first one.
        repeats: orders of minibatches in which each way is trained, at least 2; the first one is that of the run.
        draws: random sets of records that are dropped as a control, at least 2.
        episodes: of each test; of a language model the first prompts of its test split. Null for those of the run's
            own test. Each iteration has other episodes, and the same for all ways to train.
        own: train also with the weights of the run, if it dropped or weighted records.
        seed: of orders and draws.
        output: folder of the page and of the iterations that are done, from which the same command goes on; by default
            `intervention` in that of the first run.

    Raises:
        UserError: a number out of its range, or `every` beside one iteration.
    """

    iteration: int | None = None
    every: int = 1
    repeats: int = 3
    draws: int = 5
    episodes: int | None = None
    own: bool = False
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        _check(self.iteration, self.output)
        for name, lowest in {"every": 1, "repeats": 2, "draws": 2, "seed": 0}.items():
            require_range(name, getattr(self, name), at_least=lowest, integer=True)
        if self.episodes is not None:
            require_range("episodes", self.episodes, at_least=2, integer=True)
        if self.iteration is not None and self.every != 1:
            raise UserError(f"every: {self.every} needs all iterations; leave it out, or iteration")


def _check(iteration: int | None, output: str | None) -> None:
    if iteration is not None:
        require_range("iteration", iteration, at_least=0, integer=True)
    if output == "":
        raise UserError("output: no value given")


SETTINGS = {"diagnose": DiagnoseSettings, "trace": TraceSettings, "intervene": InterveneSettings}
"""By command."""
