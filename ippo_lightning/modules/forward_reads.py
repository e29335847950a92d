"""What selection reads of a language model without a gradient: values of prompts, and hidden states of responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ippo_lightning.engine import UpdateSettings
from ippo_lightning.modules.text import TextModule
from ippo_lightning.policies import EncodedResponses
from ippo_lightning.records import Batch, TextEpisodes
from ippo_lightning.rollouts import chosen_layer, prompt_values, response_activations


class ForwardReads(TextModule):
    """A module of a language model whose forward is read by rules for prompts and by scores without a backward."""

    update_settings: UpdateSettings

    def prompt_values(self, prompts: Sequence[str]) -> Tensor:
        """Return the critic's value of the last token of each prompt, shape [prompts], in units of the reward."""
        rows = self.update_settings.micro_batch_size
        return prompt_values(self.policy, prompts=prompts, micro_batch_size=rows, size=self.pass_size)

    def require_layer(self, layer: int | None) -> None:
        """Refuse a layer that the model does not have; see `response_activations`."""
        chosen_layer(self.policy, layer)

    def response_activations(self, rows: TextEpisodes | Batch, *, layer: int | None = None) -> Tensor:
        """Return the mean hidden state of each response or demonstration after a layer, shape [rows, width]."""
        if isinstance(rows, TextEpisodes):
            mask = rows.mask
            encoded = EncodedResponses(rows.prompt_ids, rows.prompt_mask, rows.response_ids, rows.response_mask)
        else:
            encoded = self.encode_demonstrations(rows)
            mask = encoded.response_mask
        limits: Any = {"micro_batch_size": self.update_settings.micro_batch_size, "size": self.pass_size}
        return response_activations(self.policy, encoded, counted=mask, layer=layer, **limits)
