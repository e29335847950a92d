"""Begin with what another run has trained: its model, or its adapter on the same base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ippo_lightning.errors import UserError
from ippo_lightning.policies.settings import LoraSettings
from ippo_lightning.storage.run_folder import RunFolder


class Start(NamedTuple):
    """What a policy is built from, see the arguments of `CausalLMPolicy`."""

    pretrained: str | None
    config: dict[str, Any] | None
    lora: LoraSettings | None


def start_of(
    start_from: str | None, *, pretrained: str | None, config: dict[str, Any] | None, lora: LoraSettings | None
) -> Start:
    """Return what a policy is built from if it begins where another run has ended.

    A run without an adapter leaves a model, which takes the place of `pretrained` and `config`. A run with an adapter
    leaves the adapter, which is continued on the base that `pretrained` or `config` name.

    Args:
        start_from: folder of the other run, or None to change nothing.
        pretrained: the policy's own setting.
        config: the policy's own setting.
        lora: the policy's own setting. A saved adapter that it names belongs to another start, and is left out.

    Raises:
        UserError: the run has left no model yet, or its adapter would not be continued.
    """
    if start_from is None:
        return Start(pretrained, config, lora)
    folder = RunFolder(start_from).model
    if (folder / "config.json").is_file():
        return Start(str(folder), None, None if lora is None else replace(lora, adapter_path=None))
    adapter = folder / "adapter"
    if not (adapter / "adapter_config.json").is_file():
        raise _no_model(start_from, pretrained)
    if lora is None:
        raise UserError(
            f"policy.start_from: {start_from!r} has trained an adapter; add lora to continue it, or give "
            f"policy.pretrained: {str(folder / 'merged')!r}"
        )
    return Start(pretrained, config, replace(lora, adapter_path=str(adapter)))


def _no_model(start_from: str, pretrained: str | None) -> UserError:
    exists = "has no model yet" if Path(start_from).is_dir() else "does not exist"
    otherwise = "" if pretrained is None else f", or set null to start from {pretrained}, or --model NAME for another"
    return UserError(
        f"policy.start_from: the run {start_from!r} {exists}; run the same command with --base sft and without "
        f"--method first{otherwise}"
    )
