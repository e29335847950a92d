"""Small records of text whose every number tells which field, row and step it belongs to."""

from __future__ import annotations

import torch

from ippo_lightning.records import TextEpisodes

PAD = 0
"""Id in padding: a record pads with zeros."""
PER_STEP = ("log_probs", "ref_log_probs", "values", "rewards", "advantages", "returns")
PER_ROW = ("truncated", "group", "outcome_rewards")
TEXTS = ("prompts", "responses", "examples")
TENSORS = ("prompt_ids", "prompt_mask", "response_ids", "mask", *PER_STEP, *PER_ROW)


def make_episodes(
    prompt_lengths: list[int], response_lengths: list[int], *, extra: int = 0, first: int = 0
) -> TextEpisodes:
    """Episodes whose every number tells which field, episode and token it belongs to; `extra` columns of padding."""
    count = len(response_lengths)
    prompt_columns, columns = max([1, *prompt_lengths]) + extra, max([1, *response_lengths]) + extra
    prompt_mask = torch.arange(prompt_columns).flip(0) < torch.tensor(prompt_lengths, dtype=torch.long)[:, None]
    mask = torch.arange(columns) < torch.tensor(response_lengths, dtype=torch.long)[:, None]
    rows = torch.arange(first, first + count)
    prompt_ids = (100 * rows[:, None] + 1 + torch.arange(prompt_columns).flip(0)).masked_fill(~prompt_mask, PAD)
    response_ids = (100 * rows[:, None] + 1 + torch.arange(columns)).masked_fill(~mask, PAD)
    numbers = {name: (response_ids + 0.1 * place) * mask for place, name in enumerate(PER_STEP)}
    return TextEpisodes(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        response_ids=response_ids,
        mask=mask,
        truncated=rows % 2 == 1,
        group=rows // 2,
        outcome_rewards=rows / 2,
        prompts=tuple(f"prompt {row}" for row in rows.tolist()),
        responses=tuple(f"response {row}" for row in rows.tolist()),
        examples=tuple({"answer": row} for row in rows.tolist()),
        **numbers,
    )


def content(episodes: TextEpisodes) -> list[dict[str, object]]:
    """Each episode without its padding: what must survive whatever is done to the record."""
    found = []
    for row in range(len(episodes)):
        of_prompt, of_response = episodes.prompt_mask[row], episodes.mask[row]
        one: dict[str, object] = {"prompt_ids": episodes.prompt_ids[row][of_prompt].tolist()}
        for name in ("response_ids", *PER_STEP):
            one[name] = getattr(episodes, name)[row][of_response].tolist()
        for name in PER_ROW:
            one[name] = getattr(episodes, name)[row].item()
        for name in TEXTS:
            one[name] = getattr(episodes, name)[row]
        found.append(one)
    return found


def assert_padded_as_promised(episodes: TextEpisodes) -> None:
    """Prompts on the left, responses on the right, numbers 0.0 off the mask."""
    assert episodes.prompt_mask.int().diff(dim=1).ge(0).all()
    assert episodes.mask.int().diff(dim=1).le(0).all()
    assert all(getattr(episodes, name)[~episodes.mask].eq(0).all() for name in PER_STEP)
    assert episodes.prompt_ids[~episodes.prompt_mask].eq(PAD).all()
    assert episodes.response_ids[~episodes.mask].eq(PAD).all()
