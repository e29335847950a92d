"""Pilot responses in a module: what is refused before the first iteration."""

from __future__ import annotations

from ippo_lightning.engine import DynamicSampling, PilotCommit
from ippo_lightning.errors import UserError
from ippo_lightning.policies import SamplingSettings


def check_pilot_commit(
    settings: PilotCommit | None, sampling: SamplingSettings, *, dynamic_sampling: DynamicSampling | None
) -> None:
    """Check what a module needs for pilot responses.

    Args:
        settings: of the module; None without them.
        sampling: of its rollouts.
        dynamic_sampling: of the module; None without it.

    Raises:
        UserError: another type, no response left after the pilots, or dynamic sampling.
    """
    if settings is None:
        return
    if not isinstance(settings, PilotCommit):
        raise UserError(f"model.pilot_commit: got {type(settings).__name__}; expected PilotCommit or null")
    if dynamic_sampling is not None:
        raise UserError("model.pilot_commit: model.dynamic_sampling chooses prompts, too; leave out one of the two")
    if sampling.num_responses < 2:
        found = "pilot_commit divides the responses to a prompt into pilots and others"
        raise UserError(f"sampling.num_responses: {sampling.num_responses}, and {found}; expected at least 2")
    most = sampling.num_responses - 1
    if settings.num_pilots > most:
        raise UserError(
            f"pilot_commit.num_pilots: {settings.num_pilots} of sampling.num_responses: {sampling.num_responses} "
            f"leaves no response for the chosen prompts; expected at most {most}"
        )


def check_offered(settings: PilotCommit | None, datamodule: object) -> None:
    """Refuse batches that leave no choice.

    Args:
        settings: of the module; None without pilot responses.
        datamodule: any object; the batches of one without a `batch_size` are not known before they come.

    Raises:
        UserError: a batch has no more prompts than are chosen.
    """
    size = getattr(datamodule, "batch_size", None)
    if settings is not None and isinstance(size, int) and settings.num_chosen(size) >= size:
        wanted = settings.num_prompts or 1
        prompts = "1 prompt" if wanted == 1 else f"{wanted} prompts"
        raise UserError(
            f"data.batch_size: {size} leaves no choice, and pilot_commit chooses {prompts} per iteration; "
            f"expected a larger batch, for example {4 * wanted}"
        )
