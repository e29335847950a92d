"""Each prompt is repeated once per response, and a response ends with its first stop token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ippo_lightning.errors import UserError
from ippo_lightning.policies import SamplingSettings, encode_prompts
from ippo_lightning.policies.generation.request import Request, build_request, response_mask_of
from ippo_lightning.policies.tokenization import TextFormat

TEXTS = ["7+12=?", "1?", "3*4?", "2+2?", "9?"]


def requested(tokenizer: PreTrainedTokenizerFast, counts: Tensor | None) -> Request:
    return build_request(
        *encode_prompts(tokenizer, TEXTS, max_length=32),
        settings=SamplingSettings(num_responses=2, max_new_tokens=2),
        counts=counts,
        text=TextFormat(tokenizer=tokenizer),
        context_length=64,
    )


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (None, ["7+12=?", "7+12=?", "1?", "1?", "3*4?", "3*4?", "2+2?", "2+2?", "9?", "9?"]),
        (torch.tensor([0, 3, 1, 0, 2]), ["1?", "1?", "1?", "3*4?", "9?", "9?"]),
    ],
)
def test_each_prompt_has_one_row_per_response(
    tokenizer: PreTrainedTokenizerFast, counts: Tensor | None, expected: list[str]
) -> None:
    request = requested(tokenizer, counts)
    rows = [ids[mask].tolist() for ids, mask in zip(request.prompt_ids, request.prompt_mask, strict=True)]
    assert tokenizer.batch_decode(rows) == expected


@pytest.mark.parametrize(
    ("counts", "complaint"),
    [
        (torch.tensor([1, 2]), r"sampling counts: shape \(2,\) of torch.int64; expected \(5,\)"),
        (torch.ones(5), r"of torch.float32; expected \(5,\) of torch.int64"),
        (torch.tensor([1, -1, 1, 1, 1]), r"\[1, -1, 1, 1, 1\]; expected integers >= 0"),
        (torch.zeros(5, dtype=torch.long), "at least one of them > 0"),
    ],
)
def test_wrong_counts_are_refused(tokenizer: PreTrainedTokenizerFast, counts: Tensor, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        requested(tokenizer, counts)


def test_the_mask_ends_with_the_first_stop_token() -> None:
    ids = torch.tensor([[5, 2, 2, 0], [5, 6, 7, 8], [9, 0, 0, 0], [5, 6, 7, 2]])
    mask, truncated = response_mask_of(ids, stop_ids=[2, 9])
    assert mask.long().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert truncated.tolist() == [False, True, False, False]
