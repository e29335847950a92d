"""Which attention a saved model may choose for itself: one of torch's own, and none that is fetched and run."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import AutoConfig, PreTrainedConfig

from ippo_lightning.errors import UserError

_OF_TORCH = ("eager", "sdpa", "flex_attention")
"""What transformers computes with torch alone. It fetches any other name from the Hub if the package `kernels` is
installed, `flash_attention_2` too where its own package is missing, and runs what it fetched."""


def config_without_kernel(pretrained: str, *, chosen: str | None, trust_remote_code: bool) -> PreTrainedConfig | None:
    """Return the configuration to load a saved model with, or None for the saved one as it is.

    Args:
        pretrained: folder or Hub name.
        chosen: the user's `attn_implementation`. transformers prefers the name that the folder contains, so this one
            has to take its place.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: the configuration, or that of a part of the model, names a kernel, and the user has chosen nothing.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(pretrained, trust_remote_code=trust_remote_code)
    except Exception:  # whoever loads the model reports what is wrong with its configuration
        return None
    named = list(_named(config))
    if chosen is not None and named:
        config._attn_implementation = chosen  # of its parts too
        return config
    for name in named:
        if name not in _OF_TORCH:
            raise UserError(
                f"policy.pretrained: the configuration of {pretrained!r} chooses the attention {name!r}, which is not "
                f"part of torch and may be fetched and run; set policy.attn_implementation to {name!r} to allow it, or "
                "to sdpa or eager"
            )
    return None


def _named(config: PreTrainedConfig) -> Iterator[str]:
    name = getattr(config, "_attn_implementation", None)
    if isinstance(name, str):
        yield name
    for part in getattr(config, "sub_configs", {}):
        inner = getattr(config, part, None)
        if isinstance(inner, PreTrainedConfig):
            yield from _named(inner)
