"""Names of earlier versions, so that an old YAML is told what took their place."""

from __future__ import annotations

from collections.abc import Collection

_SETTINGS = {
    "clip_range": "loss: ClippedLoss with low and high",
    "value_clip_range": "value_loss: ValueLoss with clip_range",
    "value_coef": "value_loss: ValueLoss with coef",
    "entropy_coef": "an argument of the model",
    "missing_eos_penalty": "an argument of the model",
    "gamma": "advantages: GAE with gamma",
    "gae_lambda": "advantages: GAE with gae_lambda",
    "bootstrap_truncated": "advantages: GAE with bootstrap_truncated",
    "whiten_advantages": "advantages: GAE with whiten",
}
"""Keys that once stood beside `minibatch_size`, and what took their place."""

_CLASSES = {
    "ArithmeticDataModule": "TextDataModule with task: arithmetic",
    "GSM8KDataModule": "TextDataModule with task: gsm8k",
    "arithmetic_reward": "grade_reward, or no reward at all",
    "gsm8k_reward": "grade_reward, or no reward at all",
    "PolicyModule": "TextModule",
    "PPOSettings": "UpdateSettings",
}
"""Old class or function to what took its place."""


_SHORT_FORMS = {"lr": "learning_rate"}
"""What other libraries call a key, where no likeness leads to it."""

_FOLDER_WORDS = ("dir", "folder", "out", "output", "output_dir", "path", "run", "save_dir")
"""What a user may call the folder of a run; no key is near to them."""


def key_hint(key: str, known: Collection[str]) -> str:
    """Return what took the place of an old key, as the end of a message, or nothing.

    Args:
        key: that is not accepted.
        known: the keys that its class accepts.

    Example:
        >>> key_hint("gamma", ["minibatch_size"])
        '; it is now advantages: GAE with gamma'
    """
    if key in _FOLDER_WORDS and "loop.run_dir" in known:
        return "; the folder of a run is loop.run_dir"
    if _SHORT_FORMS.get(key) in known:
        return f"; did you mean '{_SHORT_FORMS[key]}'?"
    # only for the class with `minibatch_size`: in any other, `gamma` is just an unknown key
    said = _SETTINGS.get(key)
    return f"; it is now {said}" if said and "minibatch_size" in known else ""


def class_hint(name: str) -> str:
    """Return what took the place of an old class or function, as the end of a message, or nothing.

    Example:
        >>> class_hint("GSM8KDataModule")
        '; it is now TextDataModule with task: gsm8k'
    """
    said = _CLASSES.get(name)
    return f"; it is now {said}" if said else ""
