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
