"""Names of earlier versions, so that an old YAML is told what took their place."""

from __future__ import annotations

from collections.abc import Collection

_KEYS = {
    "ppo": (
        "update",
        "it is now update (epochs, sizes, what filtering does), advantages, loss, value_loss, entropy_coef and "
        "missing_eos_penalty",
    ),
    "engine": ("pretrained", "it is gone; a method build_sampler of the policy makes the sampler"),
    "clip_range": ("minibatch_size", "it is now loss: ClippedLoss with low and high"),
    "value_clip_range": ("minibatch_size", "it is now value_loss: ValueLoss with clip_range"),
    "value_coef": ("minibatch_size", "it is now value_loss: ValueLoss with coef"),
    "entropy_coef": ("minibatch_size", "it is now an argument of the model"),
    "missing_eos_penalty": ("minibatch_size", "it is now an argument of the model"),
    "gamma": ("minibatch_size", "it is now advantages: GAE with gamma"),
    "gae_lambda": ("minibatch_size", "it is now advantages: GAE with gae_lambda"),
    "bootstrap_truncated": ("minibatch_size", "it is now advantages: GAE with bootstrap_truncated"),
    "whiten_advantages": ("minibatch_size", "it is now advantages: GAE with whiten"),
}
"""Old key to an argument that its class has today, and what took its place. The argument tells the class."""

_CLASSES = {
    "ArithmeticDataModule": "TextDataModule with task: arithmetic",
    "GSM8KDataModule": "TextDataModule with task: gsm8k",
    "arithmetic_reward": "grade_reward, or no reward at all",
    "gsm8k_reward": "grade_reward, or no reward at all",
    "PolicyModule": "TextModule",
    "PPOSettings": "UpdateSettings",
}
"""Old class or function to what took its place."""


def key_hint(key: str, known: Collection[str]) -> str:
    """Return what took the place of an old key, as the end of a message, or nothing.

    Args:
        key: that is not accepted.
        known: the keys that its class accepts.

    Example:
        >>> key_hint("gamma", ["minibatch_size"])
        '; it is now advantages: GAE with gamma'
    """
    sibling, said = _KEYS.get(key, ("", ""))
    return f"; {said}" if sibling in known else ""


def class_hint(name: str) -> str:
    """Return what took the place of an old class or function, as the end of a message, or nothing.

    Example:
        >>> class_hint("GSM8KDataModule")
        '; it is now TextDataModule with task: gsm8k'
    """
    said = _CLASSES.get(name)
    return f"; it is now {said}" if said else ""
