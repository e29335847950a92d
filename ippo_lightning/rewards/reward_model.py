"""A reward model: a sequence classifier with a tokenizer of its own, outside of the trained module."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ippo_lightning.errors import UserError, require_choice, require_range
from ippo_lightning.records import Example, TextEpisodes
from ippo_lightning.records.pass_size import run_in_halves
from ippo_lightning.rewards.model_loading import DTYPES, QUANTIZATIONS, load_classifier, load_tokenizer
from ippo_lightning.rewards.model_text import RewardText

_UNBOUNDED = 2**20
"""Tokenizers without a limit of their own state a number far above this."""


class RewardModel:
    """Rewards by a model with one output per text (`AutoModelForSequenceClassification`).

    It is a plain object, so its weights are no parameters of the LightningModule: they are not trained, not in a
    checkpoint and not synchronised by DDP. Each rank has its own copy. The model stays in eval mode.

    Args:
        pretrained: folder or Hub id of a model with a classification head.
        batch_size: rows per pass, similar lengths together; halved if memory runs out.
        dtype: of the weights: "float32", "bfloat16" or "float16".
        chat_template: true for the template of the model's own tokenizer, else a Jinja text or a file with one; false
            for prompt and response as they are, one behind the other. None for the tokenizer's template if it has one.
        quantization: "nf4", "fp4" or "int8"; None for none.
        device: such as "cuda:1" or "cpu"; None for the policy's.
        max_length: most tokens of a text; of a longer one the beginning is left out. None for what model and tokenizer
            allow.
        output: which output of the model is the reward, by its number or its label, for a classifier with several.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: a value is out of its range; the model cannot be loaded, has no trained head, or has several outputs
            and `output` chooses none of them.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        batch_size: int = 16,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        chat_template: bool | str | None = None,
        quantization: Literal["nf4", "fp4", "int8"] | None = None,
        device: str | None = None,
        max_length: int | None = None,
        output: int | str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        given = locals()
        self.arguments = {name: value for name, value in given.items() if name not in ("self", "__class__")}
        require_range("reward.batch_size", batch_size, at_least=1, integer=True)
        require_choice("reward.dtype", dtype, tuple(DTYPES))
        if quantization is not None:
            require_choice("reward.quantization", quantization, QUANTIZATIONS)
        if max_length is not None:
            require_range("reward.max_length", max_length, at_least=1, integer=True)
        self.device = None if device is None else _device(device)
        self.batch_size = batch_size
        tokenizer = load_tokenizer(pretrained, trust_remote_code=trust_remote_code)
        self.model = load_classifier(
            pretrained,
            dtype=DTYPES[dtype],
            quantization=quantization,
            device=self.device,
            trust_remote_code=trust_remote_code,
        )
        self._is_placed = quantization is not None  # quantised weights stay where they were loaded
        self.output = _output(self.model.config, output)
        self.max_length = _max_length(self.model.config, tokenizer, max_length)
        self.text = RewardText(tokenizer, chat_template, max_length=self.max_length)
        self._has_warned = False

    def __call__(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        examples: Sequence[Example],
        *,
        episodes: TextEpisodes | None = None,
    ) -> Tensor:
        """Return the model's output for each row, shape [rows], float32, on the CPU.

        Args:
            prompts: one per episode; a `Conversation` keeps its messages.
            responses: one per episode.
            examples: ignored.
            episodes: of the rollout; they tell the policy's device.

        Raises:
            UserError: the template refuses a prompt, or one row does not fit in the device's memory.
        """
        device = self.device or (None if episodes is None else episodes.device)
        if device is not None and not self._is_placed:
            self.model.to(device)
        rows, num_cut = self.text.encode(prompts, responses)
        if num_cut and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"reward.max_length: {num_cut} of {len(rows)} texts are longer than {self.max_length} tokens; their "
                "beginnings are left out",
                stacklevel=2,
            )
        rewards = torch.full((len(rows),), torch.nan)
        # Long texts first: if memory runs out, it does at once.
        order = torch.tensor([len(ids) for ids in rows]).argsort(descending=True, stable=True)

        def fill(chosen: Tensor) -> None:
            rewards[chosen] = self._score([rows[row] for row in chosen.tolist()])

        for chosen in order.split(self.batch_size):
            run_in_halves(chosen, fill, field="reward.batch_size")
        return rewards

    @torch.no_grad()
    def _score(self, rows: Sequence[Sequence[int]]) -> Tensor:
        ids, mask, pad_id = self.text.padded(rows)
        # Decoders read the head's input at the last token that is not this one.
        self.model.config.get_text_config().pad_token_id = pad_id
        device = self.model.device
        # Not under the policy's autocast: the reward would depend on the precision of training.
        with torch.autocast(device.type, enabled=False):
            logits: Tensor = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        return logits[:, self.output].float().cpu()


def _device(given: str) -> torch.device:
    try:
        device = torch.device(given)
    except RuntimeError as error:
        raise UserError(f"reward.device: {given!r:.60} is no device; expected cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"reward.device: {given} does not exist; this machine has {torch.cuda.device_count()} GPUs")
    return device


def _output(config: Any, chosen: int | str | None) -> int:
    """Return the number of the output that is the reward."""
    count, labels = config.num_labels, {str(name): int(place) for place, name in config.id2label.items()}
    if chosen is None and count == 1:
        return 0
    number = labels.get(chosen) if isinstance(chosen, str) else chosen
    if number is None or isinstance(number, bool) or not 0 <= number < count:
        known = ", ".join(f"{place} ({name})" for name, place in labels.items())[:120]
        raise UserError(f"reward.output: {chosen!r} chooses none of {count} outputs; expected one of {known}")
    return number


def _max_length(config: Any, tokenizer: Any, given: int | None) -> int:
    """Return the most tokens of a text: what the user gave, within what model and tokenizer allow."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf
    # RoBERTa counts its positions from the id of its pad token on.
    if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        positions -= 2
    limits = [positions, tokenizer.model_max_length or math.inf, _UNBOUNDED]
    most = int(min(limits))
    if given is not None and given > most:
        raise UserError(f"reward.max_length: {given} is more than the {most} tokens that the model reads")
    return given or most
