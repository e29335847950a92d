"""Save a policy, load what was saved as others would, and compare it with the policy."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.errors import UserError
from ippo_lightning.policies.contexts import evaluating, seeded
from ippo_lightning.policies.loading import transformers_model
from ippo_lightning.policies.probes import Probe, Tolerance, difference, probe, tolerance_of
from ippo_lightning.policies.saving import full_copy, save_model
from ippo_lightning.policies.self_check import check_rows, probe_policy
from ippo_lightning.policies.tying import adapters_on_tied_weights

if TYPE_CHECKING:
    from ippo_lightning.policies.causal_lm import CausalLMPolicy

logger = logging.getLogger(__name__)


def save_policy(policy: CausalLMPolicy, folder: Path) -> dict[str, Path]:
    """Save the language model and tokenizer, and check that each saved form computes what the policy computes.

    The check loads each form once more and makes one forward of two short rows; `self_check: false` leaves it out.

    Args:
        policy: if it is sharded, every rank must call this, and rank 0 writes.
        folder: created if missing; see `save_model`.

    Returns:
        Folders by name, see `save_model`; empty on a rank that wrote nothing.

    Raises:
        UserError: a saved form differs from the policy; the files stay.
    """
    # before the ranks part: a forward of a sharded policy needs all of them
    expected = probe_policy(policy) if policy.self_check else None
    model = full_copy(policy.model) if is_sharded(policy.model) else policy.model
    if model is None:
        return {}
    saved = save_model(model, policy.tokenizer, folder)
    if expected is not None:
        for form, path in saved.items():
            check_saved(policy, path, adapter=form == "adapter", expected=expected)
    return saved


def check_saved(policy: CausalLMPolicy, folder: Path, *, adapter: bool, expected: Probe) -> None:
    """Refuse a saved model that does not compute what the policy computes.

    Args:
        policy: the origin of the saved model.
        folder: of the saved model or adapter.
        adapter: whether the folder contains an adapter alone; its base is then loaded from the policy's source.
        expected: what the policy computes, see `probe_policy`.

    Raises:
        UserError: the folder cannot be loaded, or the difference is above what the precision of the two explains.
    """
    try:
        loaded = _loaded(policy, folder, adapter=adapter)
        with torch.random.fork_rng(devices=[]), evaluating(loaded):
            found = probe(transformers_model(loaded), check_rows(policy))
    except (MemoryError, torch.OutOfMemoryError):
        # The files are complete, and a long run should not end in an error because a second copy does not fit.
        logger.warning("%s is saved, but there is no memory to load it again and compare it with the policy", folder)
        return
    except Exception as error:
        raise UserError(
            f"saved model: {str(folder)!r} cannot be loaded again; {type(error).__name__}: {error}"
        ) from error
    tolerance = _coarser(tolerance_of(policy.language_model), tolerance_of(loaded))
    gap, bound = difference(expected, found, coarse=tolerance.coarse), tolerance.nats(expected)
    if gap > bound:
        raise UserError(
            f"saved model: {str(folder)!r} differs by {gap:.1e} nats from the policy (rounding of {tolerance.why} "
            f"explains {bound:.1e}); do not use it"
        )


def _loaded(policy: CausalLMPolicy, folder: Path, *, adapter: bool) -> PreTrainedModel | PeftModel:
    with seeded(0), adapters_on_tied_weights():  # seeded, because loading may draw weights that it replaces
        if adapter:
            return PeftModel.from_pretrained(policy.source.load(policy.tokenizer), str(folder))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype="auto", trust_remote_code=policy.source.trust_remote_code
        )
    model: PreTrainedModel = loaded
    return model


def _coarser(first: Tolerance, second: Tolerance) -> Tolerance:
    return max(first, second, key=lambda tolerance: tolerance.relative)
