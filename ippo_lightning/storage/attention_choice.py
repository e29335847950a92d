"""Which attention a saved model may choose for itself: one of torch's own, and none that is fetched and run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ippo_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_OF_TORCH = ("eager", "sdpa", "flex_attention")
"""What transformers computes with torch alone. It fetches any other name from the Hub if the package `kernels` is
installed, `flash_attention_2` too where its own package is missing, and runs what it fetched."""


def config_without_kernel(
    pretrained: str, *, chosen: str | None, trust_remote_code: bool, field: str, remedy: str
) -> PreTrainedConfig | None:
    """Return the configuration to load a saved model with, or None for the saved one as it is.

    Args:
        pretrained: folder or Hub name.
        chosen: the user's `attn_implementation`. transformers prefers the name that the folder contains, so this one
            has to take its place.
        trust_remote_code: run code that comes with the model.
        field: the setting that names the model, as the user writes it.
        remedy: what the user can do; `NAME` in it becomes the name of the attention.

    Raises:
        UserError: the configuration, or that of a part of the model, names a kernel, and the user has chosen nothing.
    """
    from transformers import AutoConfig  # imported here because it takes seconds, and pages of results need none

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
                f"{field}: the configuration of {pretrained!r} chooses the attention {name!r}, which is not part of "
                f"torch and may be fetched and run; {remedy.replace('NAME', repr(name))}"
            )
    return None


def _named(config: PreTrainedConfig) -> Iterator[str]:
    name = getattr(config, "_attn_implementation", None)
    if isinstance(name, str):
        yield name
    for part in getattr(config, "sub_configs", {}):
        inner = getattr(config, part, None)
        if inner is not None and hasattr(inner, "sub_configs"):
            yield from _named(inner)
