"""Which run a policy starts from, if a YAML leaves that to the names of the axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ippo_lightning.cli.axis_values import START_BASE, derived_start
from ippo_lightning.cli.experiment_paths import FOLDERS, Part
from ippo_lightning.errors import UserError

_KEYS = ("model", "init_args", "policy", "init_args", "start_from")
_PLACE = ".".join(_KEYS)
_SHORT_PLACE = "model.policy.start_from"


def start_layer(
    layers: Sequence[Mapping[str, Any]], parts: list[Part], *, unnamed: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Return a configuration that names the run to start from, or None if the layers do not leave it open.

    `start_from: sft` is the SFT run with the same task and models. Without a task that run has no derived folder, and
    the SFT run itself starts from nothing; both get null.

    Args:
        layers: of the command, in the order in which they apply: of files nested, of words with dotted keys.
        parts: of the run's name.
        unnamed: those of the layers that come from a file that is no part of the name.

    Raises:
        UserError: such a file leaves it open; the run of another model may have the same name.
    """
    given = [(value, layer) for layer in layers for value in _values_at(layer, _SHORT_PLACE)]
    if not given or given[-1][0] != START_BASE:
        return None
    # for the SFT run itself the names do not matter
    is_start = Part(FOLDERS["base"], START_BASE) in parts
    if not is_start and any(given[-1][1] is layer for layer in unnamed):
        raise UserError(
            f"{_PLACE}: {START_BASE} is the run with the same --task and --model, and the file with this line is "
            "given by --config; give it by --task or --model, or write the folder of the run"
        )
    layer: Any = derived_start(parts)
    for key in reversed(_KEYS):
        layer = {key: layer}
    found: dict[str, Any] = layer
    return found


def start_from_of(layers: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the folder of the run that a policy starts from, or None.

    Args:
        layers: of the command, in the order in which they apply.
    """
    given = [value for layer in layers for value in _values_at(layer, _SHORT_PLACE)]
    return given[-1] if given and isinstance(given[-1], str) else None


def _values_at(content: Mapping[str, Any], place: str) -> Iterator[Any]:
    for key, value in content.items():
        # The parser also takes a dotted key without `init_args`, `model.policy.start_from`.
        # A key that is no text is refused later, with the name of its file.
        short = ".".join(word for word in str(key).split(".") if word != "init_args")
        if short == place:
            yield value
        elif not short and isinstance(value, Mapping):
            yield from _values_at(value, place)
        elif place.startswith(f"{short}.") and isinstance(value, Mapping):
            yield from _values_at(value, place.removeprefix(f"{short}."))
