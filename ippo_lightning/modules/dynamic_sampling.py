"""Dynamic sampling in a module: what is refused before the first iteration, and what a run without prompts says."""

from __future__ import annotations

import logging

from ippo_lightning.distributed.collectives import rank
from ippo_lightning.engine import DynamicSampling
from ippo_lightning.errors import UserError
from ippo_lightning.policies import SamplingSettings
from ippo_lightning.records import UpdateStats

_LOG = logging.getLogger(__name__)


def check_dynamic_sampling(settings: DynamicSampling | None, sampling: SamplingSettings) -> None:
    """Check what a module needs for dynamic sampling.

    Args:
        settings: of the module; None without it.
        sampling: of its rollouts.

    Raises:
        UserError: another type, or one response per prompt.
    """
    if settings is None:
        return
    if not isinstance(settings, DynamicSampling):
        raise UserError(f"model.dynamic_sampling: got {type(settings).__name__}; expected DynamicSampling or null")
    if sampling.num_responses < 2:
        found = "dynamic_sampling compares the responses to a prompt with each other"
        raise UserError(f"sampling.num_responses: {sampling.num_responses}, and {found}; expected at least 2")


def check_reserve(settings: DynamicSampling | None, datamodule: object) -> None:
    """Refuse batches that have no prompts in reserve.

    Args:
        settings: of the module; None without dynamic sampling.
        datamodule: any object; the batches of one without a `batch_size` are not known before they come.

    Raises:
        UserError: a batch has no more prompts than an iteration wants.
    """
    size = getattr(datamodule, "batch_size", None)
    if settings is not None and isinstance(size, int) and settings.num_first(size) >= size:
        wanted = settings.num_prompts or 1
        raise UserError(
            f"data.batch_size: {size} leaves no prompt in reserve, and dynamic_sampling trains on {wanted} per "
            f"iteration; expected a larger batch, for example {(1 + settings.max_rounds) * wanted}"
        )


class Shortfall:
    """Says once that an iteration has fewer prompts than it wants, and once that it has none."""

    def __init__(self) -> None:
        self._said: set[bool] = set()

    def note(self, stats: UpdateStats, settings: DynamicSampling | None) -> None:
        """Log a warning if it is the first of its kind, on rank 0.

        Args:
            stats: of the iteration.
            settings: of the module; None without dynamic sampling.
        """
        filled = stats.metrics.get("dynamic_sampling/filled_fraction")
        if settings is None or filled is None or filled >= 1 or (filled == 0) in self._said:
            return
        self._said.add(filled == 0)
        rounds = int(stats.metrics["dynamic_sampling/rounds"])
        is_limit = rounds >= settings.max_rounds
        limit = f"max_rounds: {settings.max_rounds}" if is_limit else "the batch has no more prompts"
        if rank() == 0:
            _LOG.warning(
                "dynamic_sampling: iteration %d trains on %s of the prompts that it wants; the rewards of all others "
                "are equal, and %s ends the search after %d rounds. Later iterations say so in "
                "dynamic_sampling/filled_fraction only",
                stats.iteration,
                f"{filled:.0%}" if filled else "none",
                limit,
                rounds,
            )
