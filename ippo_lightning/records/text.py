"""Episodes of a language model: prompts and responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ippo_lightning.records.episodes import Column, Episodes, column, object_column, step_column

Example = Mapping[str, Any]
"""What a task knows about one prompt: any keys and values, `answer` among them if there is a right one."""

_LONGEST = 60  # characters of a prompt in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEpisodes(Episodes):
    """Responses of a language model; a step is a response token.

    Example:
        Prompt ``7+12?`` answered ``7+12=19;#19<eos>``: ``prompt_ids`` has 5 tokens, ``response_ids`` 11 tokens with
        EOS, and ``mask`` is True on all of them. ``outcome_rewards`` is 1.0. ``rewards`` is the KL penalty on each
        token, and 1.0 more on the EOS token.
    """

    prompt_ids: Tensor = column("prompt_tokens", pad="left")
    """[rows, prompt_tokens] int64, padded on the left."""
    prompt_mask: Tensor = column("prompt_tokens", pad="left")
    """[rows, prompt_tokens] bool, True on real tokens."""
    response_ids: Tensor = step_column()
    """[rows, steps] int64, the very ids that were sampled, padded on the right."""
    # `Any`: None until `__post_init__`, so that code which makes episodes without an engine need not name it
    sampler_gap: Any = field(default=None, metadata={"column": Column("steps")})
    """[rows, steps] nats, `log_probs` minus the log-prob that the sampler drew the token with; 0.0 where the mask is
    False, and everywhere if the sampler reports none."""
    prompts: tuple[str, ...] = object_column()
    """The prompts as text, one per row."""
    responses: tuple[str, ...] = object_column()
    """The responses as text, for rewards and reports; they are never tokenized again."""
    examples: tuple[Example, ...] = object_column()
    """What the data module knows about each prompt, the answer for instance."""

    mask_of_axis: ClassVar[Mapping[str, str]] = {"steps": "mask", "prompt_tokens": "prompt_mask"}

    def __post_init__(self) -> None:
        """Fill what was left out, and check the shapes."""
        if self.sampler_gap is None:
            object.__setattr__(self, "sampler_gap", torch.zeros_like(self.log_probs))  # the record is frozen
        Episodes.__post_init__(self)  # a dataclass with slots is a second class, which `super()` does not know

    @property
    def response_mask(self) -> Tensor:
        """[rows, steps] bool, True on the tokens that the policy reads: all up to the last one that counts.

        Without holes in the mask it is the mask. Tokens of a tool between two turns are read, but they do not count.
        """
        return torch.arange(self.mask.shape[1], device=self.device) < self.spans[:, None]

    def cost(self) -> Tensor:
        """Return the tokens of each row, prompt and response, shape [rows], int64."""
        return self.spans + self.prompt_mask.sum(dim=1)

    def describe(self, row: int) -> str:
        """Return the beginning of the row's prompt."""
        return f"prompt {self.prompts[row][:_LONGEST]!r}"

    def for_update(self) -> TextEpisodes:
        """Return the same episodes without the responses as text and without the examples."""
        # The prompts stay: messages name a row by the beginning of its prompt.
        return self.evolve(responses=("",) * len(self), examples=({},) * len(self))
