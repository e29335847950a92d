"""Sample with vLLM (the extra `vllm`), which gets the policy's weights again for each rollout.

Source: Kwon et al. 2023, PagedAttention, arXiv 2309.06180.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ippo_lightning.errors import UserError
from ippo_lightning.policies.generation.request import Drawn, Request, Samples, sample_in_batches
from ippo_lightning.policies.generation.vllm_engine import naming_failures, started
from ippo_lightning.policies.generation.vllm_weights import hand_over_of
from ippo_lightning.policies.loading import ModelSource


class VLLMSampler:
    """Sample with an engine of its own; each request brings the policy's present weights.

    Each rank has its own engine, on the device of its policy.

    Args:
        model: the policy's network, not sharded.
        tokenizer: the engine finds stop strings with it.
        source: where the base comes from.
        options: more arguments of `vllm.LLM`; they override the policy's.

    Raises:
        UserError: vLLM cannot sample from this policy, is not installed, or does not start.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        source: ModelSource,
        options: Mapping[str, object],
    ) -> None:
        # PPO's ratio assumes that the sampling model and the scoring model are the same.
        if source.quantization is not None and "quantization" not in options:
            raise UserError(
                f"sampling.engine: no quantization, while the policy's base is {source.quantization}; responses would "
                "be those of another model; set engine.quantization, for example to bitsandbytes"
            )
        self.model = model
        # It lives as long as the sampler: the engine may read its model and tokenizer there at any time.
        self._folder = tempfile.TemporaryDirectory(prefix="ippo_vllm_")
        tokenizer_folder = Path(self._folder.name) / "tokenizer"
        tokenizer.save_pretrained(tokenizer_folder)
        model.config.save_pretrained(tokenizer_folder)  # vLLM looks for one beside a tokenizer, and reports its absence
        self._hand_over = hand_over_of(model, tokenizer, source=source, start=Path(self._folder.name) / "model")
        self._arguments = engine_arguments(
            self._hand_over.arguments,
            tokenizer=str(tokenizer_folder),
            dtype=source.dtype,
            trust_remote_code=source.trust_remote_code,
            options=options,
        )
        self._vllm, self._engine = started(self._arguments, device=model.device)

    def __call__(self, request: Request) -> Samples:
        """Return one response per row; each row gets a seed from the caller's random stream.

        Args:
            request: prompts, one row per response.

        Raises:
            ConnectionError: the engine has ended.
        """
        with tempfile.TemporaryDirectory(prefix="ippo_weights_") as folder:
            with naming_failures():
                adapter = self._hand_over.give(self._engine, Path(folder))
            return sample_in_batches(request, partial(self._draw, adapter=adapter), network=self.model)

    def _draw(self, request: Request, *, adapter: object | None) -> Drawn:
        # From the caller's stream, so that a resumed run samples the same responses.
        seeds = torch.randint(2**31, (len(request.prompt_ids),)).tolist()
        prompts = [
            {"prompt_token_ids": ids[mask].tolist()}
            for ids, mask in zip(request.prompt_ids, request.prompt_mask, strict=True)
        ]
        with naming_failures():
            outputs = self._engine.generate(
                prompts, [self._parameters(request, seed) for seed in seeds], lora_request=adapter, use_tqdm=False
            )
        return _drawn([output.outputs[0] for output in outputs], request)

    def _parameters(self, request: Request, seed: int) -> object:
        settings = request.settings
        stop = None if request.stop_strings is None else list(request.stop_strings.texts)
        return self._vllm.SamplingParams(
            # vLLM takes a temperature of 0 for greedy.
            temperature=0.0 if settings.greedy else settings.temperature,
            top_p=1.0 if settings.greedy else settings.top_p,
            top_k=0,
            seed=seed,
            max_tokens=settings.max_new_tokens,
            stop_token_ids=request.stop_ids,
            ignore_eos=True,  # stop_token_ids already contains every EOS of tokenizer and model
            logprobs=0,  # that of the sampled token only
            # Tokens after a stop string would be wasted. The end is found again in the ids, as for every sampler.
            stop=stop,
            skip_special_tokens=False,
            detokenize=stop is not None,
        )


def _drawn(answers: list[Any], request: Request) -> Drawn:
    """Return the ids and log-probs of vLLM's answers, one per row."""
    rows = [torch.tensor(list(answer.token_ids), dtype=torch.long) for answer in answers]
    log_probs = [
        torch.tensor([entry[token].logprob for entry, token in zip(answer.logprobs, answer.token_ids, strict=True)])
        for answer in answers
    ]
    lengths = torch.tensor([len(row) for row in rows])
    ids = pad_sequence(rows, batch_first=True, padding_value=request.pad_id)
    device = request.prompt_ids.device
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return Drawn(ids.to(device), pad_sequence(log_probs, batch_first=True).to(device), mask.to(device))


def engine_arguments(
    weights: Mapping[str, object],
    *,
    tokenizer: str,
    dtype: str,
    trust_remote_code: bool,
    options: Mapping[str, object],
) -> dict[str, object]:
    """Return the arguments of `vllm.LLM`.

    Args:
        weights: those of the hand-over.
        tokenizer: folder of the policy's.
        dtype: of the policy's weights.
        trust_remote_code: run code that comes with the model.
        options: more arguments; they override the others.
    """
    return {
        **weights,
        "tokenizer": tokenizer,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "enable_prefix_caching": False,  # cached keys and values would come from earlier weights
        # after the temperature: those of the distribution that is drawn from
        "logprobs_mode": "processed_logprobs",
        **options,
    }
