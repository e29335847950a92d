"""One pass over the validation or test prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch

from ippo_lightning.distributed.collectives import all_reduce_sum, gather_rows
from ippo_lightning.distributed.lockstep import in_step
from ippo_lightning.errors import UserError
from ippo_lightning.metrics.counts import PromptCounts
from ippo_lightning.modules.measured_reward import MeasuredRewardError
from ippo_lightning.records import Batch
from ippo_lightning.run.loaders import LoaderStream, loader_of
from ippo_lightning.run.stable_text import plain_text

if TYPE_CHECKING:
    from ippo_lightning.run.iteration_loop import IterationLoop

EvaluationSplit = Literal["validation", "test"]


@contextmanager
def split_named(split: EvaluationSplit) -> Iterator[None]:
    """Name the split in the error of a reward that the block measures.

    Args:
        split: whose prompts are evaluated.
    """
    try:
        yield
    except MeasuredRewardError as error:
        raise error.of_split(split) from error.__cause__


def evaluate_split(loop: IterationLoop, split: EvaluationSplit) -> tuple[dict[str, float], int]:
    """Return the metrics of one split and its number of prompts, over all ranks; the stream of training does not move.

    Args:
        loop: its callbacks are called as `lightning.Trainer` calls them, if it is in `fit`.
        split: which prompts.

    Raises:
        UserError: the split has no prompts.
    """
    module, loader = loop.module, loader_of(loop.datamodule, split)
    batches = LoaderStream(0).run(lambda: list(loader))
    if not batches:
        raise UserError(f"data: the {split} split has 0 batches; expected at least 1 prompt")
    # Of graded responses only: rewards have no counts, and a subclass may have metrics of its own.
    counts = getattr(module.evaluation_metrics, "prompt_counts", None) if split == "test" else None
    # Before the test: a grader may write into an example.
    known = {"prompts_sha256": _digest_of(batches)} if isinstance(counts, PromptCounts) else {}
    prompts = 0
    module.evaluation_metrics.reset()
    with torch.no_grad():
        loop.call_hook(f"on_{split}_start")
        loop.call_hook(f"on_{split}_epoch_start")
        for (index, batch), is_mine in in_step(list(enumerate(batches)), module=module):
            if not is_mine:  # for the collectives of the other ranks; what is sampled does not count
                with loop.fabric.autocast():
                    module.sample(batch)
                continue
            loop.call_hook(f"on_{split}_batch_start", batch, index)
            with loop.fabric.autocast(), split_named(split):
                outputs: Any = module.validation_step(batch, index)  # type: ignore[func-returns-value]  # a subclass may
            loop.call_hook(f"on_{split}_batch_end", outputs, batch, index)
            prompts += module.num_evaluated(batch)
        loop.call_hook(f"on_{split}_epoch_end")
    metrics: dict[str, float] = module.evaluation_metrics.compute()
    loop.prompt_counts = {**known, **counts.compute()} if isinstance(counts, PromptCounts) else {}
    module.evaluation_metrics.reset()
    return metrics, int(all_reduce_sum(torch.tensor(prompts)))


def _digest_of(batches: Sequence[Batch]) -> str:
    """Return a SHA-256 of the prompts of all ranks in their order, with what the data know about them."""
    digest = hashlib.sha256()
    for batch in batches:
        for prompt, example in zip(batch["prompts"], batch["examples"], strict=True):
            # With the example: after a right answer was corrected, it is another test.
            known = json.dumps(example, sort_keys=True, default=plain_text)
            digest.update(repr((prompt, known)).encode(errors="surrogatepass"))
    of_ranks, _ = gather_rows(torch.tensor([list(digest.digest())]))
    return hashlib.sha256(bytes(of_ranks.flatten().tolist())).hexdigest()
