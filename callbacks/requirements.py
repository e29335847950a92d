"""What callbacks need of the module that is trained, checked before the first iteration."""

from __future__ import annotations

from lightning import Callback

from ippo_lightning.errors import UserError


def require_texts(callback: Callback, module: object) -> None:
    """Refuse a module whose rows have no texts.

    Args:
        callback: that writes prompts and responses.
        module: of this project, or a foreign one, which may have them.

    Raises:
        UserError: the module acts in environments.
    """
    if getattr(module, "evaluates", "prompts") != "prompts":
        raise UserError(
            f"callbacks: {type(callback).__name__} writes prompts and responses, and {type(module).__name__} has none; "
            "leave it out of a run in environments"
        )


def require_rollouts(callback: Callback, module: object) -> None:
    """Refuse a module whose training has no rollouts: the callback would wait for one and do nothing.

    Args:
        callback: that acts after a rollout or its update.
        module: of this project, or a foreign one, which may have them.

    Raises:
        UserError: the module says that it makes none, as `SFTModule` does.
    """
    if not getattr(module, "makes_rollouts", True):
        raise UserError(
            f"callbacks: {type(callback).__name__} acts on rollouts, and {type(module).__name__} makes none; leave it "
            "out of supervised fine-tuning"
        )
