"""From a batch to the prompts that are sampled, and from a rollout to what a prompt rule learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import gather_rows, rank
from ippo_lightning.errors import UserError
from ippo_lightning.maths import masked_row_mean
from ippo_lightning.records import Batch, Episodes
from ippo_lightning.selection.prompt_rules import PromptRule, PromptTable, SampledRows, key_number

_KNOWN = frozenset({"values"})


def require_prompt_rule(rule: PromptRule, module: Any) -> None:
    """Check before training that a module has what a rule reads.

    Args:
        rule: of the user.
        module: about to be trained.

    Raises:
        UserError: the module makes no rollouts, or has no critic for a rule that reads values.
    """
    unknown = sorted(set(rule.needs) - _KNOWN)
    if unknown:
        raise UserError(f"{rule.name}.needs: {unknown[0]!r} is unknown; expected names from {', '.join(_KNOWN)}")
    kind = type(module).__name__
    if not callable(getattr(module, "plan_rollout", None)):
        raise UserError(f"PromptSelection: {kind} samples nothing; expected a module with plan_rollout, as PPOModule")
    if "values" not in rule.needs:
        return
    if not callable(getattr(module, "prompt_values", None)):
        raise UserError(f"PromptSelection.rule: {rule.name} reads values, and {kind} has no method prompt_values")
    if not getattr(getattr(module, "policy", None), "has_values", True):
        raise UserError(
            f"PromptSelection.rule: {rule.name} reads the critic's values, and the policy has no critic; set "
            "policy.value to head, adapter or separate"
        )


def table_of(
    rule: PromptRule, batch: Batch, *, num_kept: int, seed: int, iteration: int, values: Tensor | None
) -> PromptTable:
    """Return what a rule chooses from.

    Args:
        rule: gives each prompt its key.
        batch: of this rank, with the columns `prompts` and `examples`.
        num_kept: prompts to sample.
        seed: of the random numbers.
        iteration: counted from 0.
        values: shape [prompts], if the rule needs them.
    """
    # Large factors, so that the next seed or rank does not repeat the draw of another iteration.
    generator = torch.Generator().manual_seed(seed * 1_000_003 + iteration + 1_000_000_007 * rank())
    return PromptTable(
        prompts=batch["prompts"],
        examples=batch["examples"],
        keys=keys_of(rule, batch["prompts"], batch["examples"]),
        num_kept=num_kept,
        generator=generator,
        predictions=None if values is None else values.detach().cpu().double(),
    )


def chosen_prompts(rule: PromptRule, table: PromptTable) -> list[int]:
    """Return the places of the prompts that are sampled, in the order of the batch.

    Args:
        rule: ranks the prompts.
        table: of this rank.

    Raises:
        UserError: the rule returned something other than a number per prompt.
    """
    found: Any = rule.ranking(table)
    expected = f"a number per prompt, of shape ({len(table)},)"
    if not isinstance(found, Tensor):
        raise UserError(f"{rule.name}.ranking: returned a {type(found).__name__}; expected {expected}")
    if found.shape != (len(table),) or found.is_complex():
        raise UserError(f"{rule.name}.ranking: returned {found.dtype} of {tuple(found.shape)}; expected {expected}")
    if bool(found.isnan().any()):  # sorted to the front, such a prompt would always be sampled
        raise UserError(f"{rule.name}.ranking: returned NaN; expected {expected}")
    order = found.cpu().double().argsort(descending=True, stable=True)
    return sorted(order[: table.num_kept].tolist())


def selected(batch: Batch, places: list[int]) -> dict[str, Any]:
    """Return a batch of some of the prompts.

    Args:
        batch: by column, each with one entry per prompt.
        places: of the prompts.
    """
    return {
        name: column[places] if isinstance(column, Tensor) else [column[place] for place in places]
        for name, column in batch.items()
    }


def sampled_rows(rule: PromptRule, episodes: Episodes) -> SampledRows:
    """Gather the rows of a rollout over all ranks; all ranks call this together.

    Args:
        rule: gives each row's prompt its key.
        episodes: of this rank, with advantages.
    """
    texts: Any = episodes
    keys = torch.tensor(keys_of(rule, texts.prompts, texts.examples), dtype=torch.float64, device=episodes.device)
    advantages = masked_row_mean(values=episodes.advantages, mask=episodes.mask)
    columns = [keys, episodes.outcome_rewards.double(), advantages.double()]
    # A key has at most 52 bits, which float64 represents exactly.
    rows, _ = gather_rows(torch.stack(columns, dim=1))
    found, rewards, advantages = rows.cpu().unbind(dim=1)
    return SampledRows(keys=[int(key) for key in found.tolist()], rewards=rewards, advantages=advantages)


def keys_of(rule: PromptRule, prompts: Any, examples: Any) -> list[int]:
    """Return the number of each prompt's key.

    Args:
        rule: makes the keys.
        prompts: [prompts] texts.
        examples: [prompts] what the data module knows about each.

    Raises:
        UserError: a key is no text.
    """
    keys = [_checked_key(rule, prompt, example) for prompt, example in zip(prompts, examples, strict=True)]
    numbers = {key: key_number(key) for key in set(keys)}
    return [numbers[key] for key in keys]


def _checked_key(rule: PromptRule, prompt: str, example: Mapping[str, Any]) -> str:
    key: Any = rule.key(prompt, example)
    if not isinstance(key, str):
        raise UserError(f"{rule.name}.key: returned a {type(key).__name__}; expected a text")
    return key
