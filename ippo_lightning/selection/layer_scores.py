"""The choice of rows for each layer by itself, before each optimizer step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.distributed.dtensor import have_nonzero
from ippo_lightning.errors import UserError
from ippo_lightning.influence import RowShare, gradients_of_rows, require_row_gradients
from ippo_lightning.records import LayerRows, UpdatePlan
from ippo_lightning.selection.activations import ForwardTarget
from ippo_lightning.selection.rules import SelectionRule, decide
from ippo_lightning.selection.score_at import MinibatchScores
from ippo_lightning.selection.score_health import part_of
from ippo_lightning.selection.selector import SelectorSettings
from ippo_lightning.selection.settings import ScoringSettings
from ippo_lightning.selection.table import RolloutTable
from ippo_lightning.selection.targets import Target


def layer_of(name: str) -> str:
    """Return the layer that a parameter belongs to: the module that owns it, or that its LoRA adapter changes.

    Args:
        name: of the parameter.

    Example:
        >>> layer_of("layers.0.q_proj.lora_A.default.weight")
        'layers.0.q_proj'
    """
    return name.split(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0]


def require_layer_settings(
    rule: SelectionRule, target: Target, scoring: ScoringSettings, settings: SelectorSettings
) -> None:
    """Refuse what makes no sense for a choice by layer.

    Args:
        rule: of the filter.
        target: of the filter.
        scoring: of the filter.
        settings: of the filter.

    Raises:
        UserError: names the setting, and what would be right.
    """
    found, field = "", "InfluenceFilter.score_at: layer, and"
    if "scores" not in rule.needs:
        found = f"{rule.name} reads no scores, so it decides alike for each layer; use minibatch"
    elif rule.scales:
        found = f"{rule.name} weighs rows, while a layer learns from a row or does not; set power to 0"
    elif isinstance(target, ForwardTarget):
        found = f"{type(target).__name__} takes no gradients, which alone have a part in each layer; use minibatch"
    elif scoring.method != "hooks":
        found = f"only scoring.method: hooks splits scores by layer; got {scoring.method}"
    elif scoring.normalise != "none":
        found = f"scores of a layer have no {scoring.normalise}; set scoring.normalise to none"
    elif settings.drop_when == "all":
        found = "drop_when: all reads scores of whole rows; use mean"
    elif settings.on_empty == "stop":
        found = "on_empty: stop is about whole rows; use skip or keep_all"
    if found:
        raise UserError(f"{field} {found}")


def require_layers(module: Any, callbacks: Iterable[object]) -> None:
    """Refuse a run in which layers cannot learn from different rows.

    Args:
        module: about to be trained.
        callbacks: of the run.

    Raises:
        UserError: a second filter chooses by layer, the critic is to learn from dropped rows, or the model is sharded
            or compiled.
    """
    choosing = [one for one in callbacks if getattr(one, "score_at", None) == "layer"]
    if len(choosing) > 1:
        raise UserError(f"InfluenceFilter.score_at: layer, in {len(choosing)} filters; expected one, and minibatch")
    if getattr(getattr(module, "update_settings", None), "train_value_on_dropped", False):
        raise UserError(
            "update.train_value_on_dropped: true, and with score_at: layer a row's losses leave a layer together; set "
            "it to false"
        )
    require_row_gradients(module)


class LayerScores(MinibatchScores):
    """Chooses for each layer the rows of a minibatch that it learns from."""

    def decided(self, plan: UpdatePlan, *, module: Any, trainer: Any, iteration: int, minibatch: int) -> Tensor | None:
        """Score the rows, and choose by layer; the plan's weights stay."""
        selector = self.selector
        rule = selector.rule.fitted(module)
        found = selector.scored(plan, module=module, trainer=trainer, iteration=iteration)
        scored, gradients = found.scored, found.gradients
        assert scored is not None, "`require_layer_settings` has looked"
        assert gradients is not None, "`require_layer_settings` has looked"
        layers = _layers(gradients.mean)
        zeros = torch.zeros_like(scored.scores)
        own = {
            f"layer {number}": torch.stack([scored.by_parameter.get(name, zeros) for name in names]).sum(dim=0)
            for number, names in enumerate(layers.values())
        }
        table = selector.table(plan, scored, iteration=iteration, part=0, own=own)
        keep = [
            # Numbers of their own, so that a random rule draws anew for each layer of each step.
            self._kept(rule, table, own=f"layer {number}", part=minibatch * len(layers) + number)
            for number in range(len(layers))
        ]
        chosen = torch.stack(keep) if keep else table.kept.new_zeros(0, len(table))
        plan.record(**found.metrics(table), **_layer_metrics(layers, chosen, table))
        # Also from what no layer is about: its losses are not finite.
        reason = f"InfluenceFilter({rule.name})"
        if not selector.settings.monitor_only:
            plan.drop(table.force_drop[table.mine].to(plan.weights.device) & plan.keep, reason=reason)
            plan.choose_by_layer(_layer_rows(module, layers, chosen[:, table.mine]), reason=reason)
        selector.gradients.release()
        return None

    def _kept(self, rule: SelectionRule, table: RolloutTable, *, own: str, part: int) -> Tensor:
        """Return which rows of all ranks a layer learns from, shape [rows], bool."""
        settings = self.selector.settings
        of_layer = replace(table, columns={**table.columns, "scores": table.own(own)}, part=part)
        keep = decide(rule, of_layer, min_keep=settings.min_keep, max_weight=None) > 0
        if settings.on_empty == "keep_all" and not bool(keep.any()):
            return table.kept & ~table.force_drop
        return keep


def _layers(direction: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the parameters that the target depends on, by layer; the same on all ranks."""
    layers: dict[str, list[str]] = {}
    for name, counts in zip(direction, have_nonzero(list(direction.values())), strict=True):
        if counts:
            layers.setdefault(layer_of(name), []).append(name)
    return layers


def _layer_rows(module: Any, layers: Mapping[str, list[str]], keep: Tensor) -> LayerRows:
    def sharing(shares: Mapping[str, tuple[Tensor, float]]) -> Any:
        return gradients_of_rows(module, {name: RowShare(*share) for name, share in shares.items()})

    layer_numbers = {name: number for number, names in enumerate(layers.values()) for name in names}
    parameters = dict(module.named_parameters())
    return LayerRows(
        keep=keep,
        layer_of=layer_numbers,
        parameters={name: parameters[name] for name in layer_numbers},
        sharing=sharing,
    )


def _layer_metrics(layers: Mapping[str, list[str]], keep: Tensor, table: RolloutTable) -> dict[str, float]:
    """Return kept fractions of all ranks: their mean over layers, the lowest, and the mean over each part."""
    if not layers:
        return {}
    kept = keep.double().sum(dim=1) / max(int(table.kept.sum()), 1)
    parts: dict[str, list[float]] = {}
    for names, fraction in zip(layers.values(), kept.tolist(), strict=True):
        parts.setdefault(part_of(names[0]), []).append(fraction)
    return {
        "influence__scored_kept_fraction": float(kept.mean()),
        "influence__layer_kept_min": float(kept.min()),
        "influence__layers_without_rows": float((kept == 0).sum()),
        **{f"influence__layer_kept_{part}": sum(values) / len(values) for part, values in parts.items()},
    }
