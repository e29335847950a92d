"""An evaluation with a record of each response: sampled and graded batch by batch, by one process or by several."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice, repeat
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from ippo_lightning.data import Splits
from ippo_lightning.distributed.collectives import rank, world_size
from ippo_lightning.errors import UserError
from ippo_lightning.metrics import reference_answers
from ippo_lightning.metrics.rewards import REWARD
from ippo_lightning.modules import TextModule
from ippo_lightning.records import Batch, Example
from ippo_lightning.rollouts import SampledResponses
from ippo_lightning.run.evaluation import EvaluationSplit
from ippo_lightning.run.evaluation_folder import EvaluationFolder
from ippo_lightning.run.fabric_loop import FabricLoop
from ippo_lightning.run.items import Item
from ippo_lightning.run.loaders import LoaderStream, loader_of
from ippo_lightning.run.progress import ProgressBar
from ippo_lightning.run.stable_text import plain_text
from ippo_lightning.storage.run_folder import CONFIG
from ippo_lightning.tasks import Grade, callable_name, label_text, row_prompt

_OWN_WAYS = ("evaluate_batch", "validation_step", "test_step")


class Prompt(NamedTuple):
    """A prompt of a split, and what the data know about it."""

    text: str
    example: Example


def prompts_of(loop: FabricLoop, split: EvaluationSplit) -> list[Prompt]:
    """Return the prompts of a split in their order, all of them on every rank.

    Args:
        loop: after `set_up_evaluation`.
        split: which prompts.

    Raises:
        UserError: there are none, or the data module of another library divides them over ranks.
    """
    loader = loader_of(loop.datamodule, split)  # raises if there are none
    splits = getattr(loop.datamodule, "splits", None)
    if isinstance(splits, Splits):
        rows = getattr(splits, split)
        # As in `collate_rows`: a reward or a grader may write into an example.
        return [Prompt(row_prompt(row), dict(row["example"])) for row in islice(rows, len(rows))]
    if world_size() > 1:
        name = type(loop.datamodule).__name__
        raise UserError(f"fabric.devices: {world_size()} need a TextDataModule, and the data are {name}; expected 1")
    batches = LoaderStream(0).run(lambda: list(loader))
    found = [pair for batch in batches for pair in zip(batch["prompts"], batch["examples"], strict=True)]
    if not found:
        raise UserError(f"data: the {split} split has 0 batches; expected at least 1 prompt")
    return [Prompt(text, example) for text, example in found]


def text_module(module: object, *, run: Path | None = None) -> TextModule:
    """Return a module whose evaluation is a grade or a reward of each response.

    Args:
        module: of a run.
        run: its folder, for the message.

    Raises:
        UserError: it is no `TextModule`, or evaluates in a way of its own.
    """
    name = type(module).__name__
    if not isinstance(module, TextModule):
        raise UserError(f"model: {name} is no TextModule, and so samples no responses{_other_command(run)}")
    own = [way for way in _OWN_WAYS if getattr(type(module), way) is not getattr(TextModule, way)]
    if own:
        raise UserError(f"model: {name} evaluates in its own way ({own[0]}){_other_command(run)}")
    return module


def _other_command(run: Path | None) -> str:
    if run is None:
        return ""
    return f"; use `ippo evaluate --config {shlex.quote(str(run / CONFIG))} --checkpoint last`"


def check_judge(module: TextModule) -> None:
    """Refuse a module that can neither grade nor reward a response.

    Args:
        module: after `use_data`, which takes the grader of the task.

    Raises:
        UserError: there is neither a grader nor a reward, or no grader and a reward that needs a rollout.
    """
    reward = module.evaluation_reward
    if module.grader is None and (reward is None or reward.needs_rollout):
        counts = "" if reward is None else ", and the reward counts tokens of a rollout"
        raise UserError(
            f"model.grader: null, and the data has no task with a grade{counts}; an evaluation needs a grader, or a "
            "reward of texts"
        )


def settings_of(module: TextModule, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Return what the responses depend on beside the model and the hardware, as JSON.

    Args:
        module: with its evaluation settings.
        prompts: of the split.

    Raises:
        UserError: a prompt and the longest response do not fit the context.
    """
    digest, room = hashlib.sha256(), module.policy.context_length - module.evaluation.max_new_tokens
    for number, prompt in enumerate(prompts):
        # As ids: the same text is another prompt under another template or tokenizer.
        ids = module.policy.text.prompt_row(prompt.text, f"prompt {number}")
        if len(ids) > room:
            raise UserError(
                f"max_new_tokens: {module.evaluation.max_new_tokens} leaves no room for prompt {number} of {len(ids)} "
                f"tokens; expected at most {module.policy.context_length - len(ids)}"
            )
        # With the example: after a right answer was corrected, the old grades are wrong.
        known = json.dumps(prompt.example, sort_keys=True, default=plain_text)
        digest.update(repr((prompt.text, ids, known)).encode("utf-8", errors="surrogatepass"))
    judge = module.grader.grader if module.grader is not None else None
    reward = module.evaluation_reward if module.measures_reward else None
    return {
        "sampling": asdict(module.evaluation),
        "seed": module.evaluation_seed,
        "prompts": len(prompts),
        "prompts_sha256": digest.hexdigest(),
        "special_tokens": module.policy.text.special_tokens,
        "dtype": module.policy.source.dtype,
        "quantization": module.policy.source.quantization,
        "grader": None if judge is None else callable_name(judge),
        "reward": None if reward is None else callable_name(reward.reward),
    }


def batch_sizes(num_prompts: int, *, batch_size: int, samples: int) -> list[int]:
    """Return the number of items in each batch.

    Args:
        num_prompts: of the split.
        batch_size: prompts per batch.
        samples: responses to each prompt.
    """
    return [samples * min(batch_size, num_prompts - start) for start in range(0, num_prompts, batch_size)]


def evaluate_items(
    loop: FabricLoop, folder: EvaluationFolder, prompts: Sequence[Prompt], *, batch_size: int
) -> list[Item] | None:
    """Sample and grade what is missing, and return all items on rank 0, None on other ranks.

    The random stream of a batch depends on its number only. So the items are the same after an interruption, and with
    any number of ranks.

    Args:
        loop: after `set_up_evaluation`; its module samples.
        folder: begun on rank 0.
        prompts: of the split, the same on each rank.
        batch_size: prompts per batch.

    Raises:
        KeyboardInterrupt: after Ctrl-C; the batches that are done stay.
    """
    found = folder.read() if rank() == 0 else None
    missing = folder.missing() if rank() == 0 and found is None else []
    # Of rank 0 for all ranks: each may see the file system at another moment.
    is_done, missing = loop.fabric.broadcast((found is not None, missing))
    if is_done:
        return found
    try:
        _evaluate_batches(loop, folder, prompts, numbers=missing[rank() :: world_size()], batch_size=batch_size)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"what is done stays in {folder.path}; the same command goes on from there") from error
    loop.fabric.barrier()
    return folder.join() if rank() == 0 else None


def _evaluate_batches(
    loop: FabricLoop, folder: EvaluationFolder, prompts: Sequence[Prompt], *, numbers: Sequence[int], batch_size: int
) -> None:
    with ProgressBar(enabled=rank() == 0, total=len(numbers), title=loop.folder.path.name[:16]) as bar:
        for done, number in enumerate(numbers):
            bar.update(completed=done, numbers={})
            start = number * batch_size
            items = evaluated_batch(loop, prompts[start : start + batch_size], number=number, start=start)
            folder.write_part(number, items)
        bar.update(completed=len(numbers), numbers={})


@torch.no_grad()
def evaluated_batch(loop: FabricLoop, prompts: Sequence[Prompt], *, number: int, start: int) -> list[Item]:
    """Return the items of one batch, sampled in the random stream of its number.

    Args:
        loop: after `set_up_evaluation` or `set_up_rounds`; its module samples.
        prompts: of the batch.
        number: of the batch.
        start: place of the first prompt in the split.
    """
    module = text_module(loop.module)
    batch: Batch = {"prompts": [prompt.text for prompt in prompts], "examples": [prompt.example for prompt in prompts]}
    with loop.fabric.autocast(), module.evaluation_stream(number, of_rank=0):
        sampled = module.sample(batch)
        judged = _judged(module, batch, sampled)
    references = reference_answers(batch["examples"]) if module.grader is not None else [None] * len(prompts)
    return [
        Item(
            prompt_index=start + row,
            sample=sample,
            prompt=str(prompts[row].text),
            response=text,
            **judged[row][sample],
            reference=references[row],
            response_tokens=int(sampled.lengths[row, sample]),
            truncated=bool(sampled.truncated[row, sample]),
        )
        for row, texts in enumerate(sampled.texts)
        for sample, text in enumerate(texts)
    ]


class _Graded(TypedDict):
    """What the grader says of a response."""

    correct: bool | None
    label: str | None
    faithful: bool | None
    answer: str | None


class _Rewarded(TypedDict):
    """What the reward says of a response."""

    reward: float | None
    reward_parts: dict[str, float]


class _Judged(_Graded, _Rewarded):
    """Both."""


_NO_GRADE = _Graded(correct=None, label=None, faithful=None, answer=None)


def _judged(module: TextModule, batch: Batch, sampled: SampledResponses) -> list[list[_Judged]]:
    """Return the grade of each response, and its reward if an evaluation measures it."""
    rewards = _rewards(module.reward_responses(batch, sampled))
    if module.grader is not None:
        grades = module.grader.grade_groups(batch["prompts"], sampled.texts, batch["examples"])
        return [[_Judged(**_grade(grade), **next(rewards)) for grade in group] for group in grades]
    return [[_Judged(**_NO_GRADE, **next(rewards)) for _ in group] for group in sampled.texts]


def _grade(grade: Grade) -> _Graded:
    label = None if grade.label is None else label_text(grade.label)
    return _Graded(correct=bool(grade.correct), label=label, faithful=grade.faithful, answer=grade.answer)


def _rewards(named: Mapping[str, Tensor]) -> Iterator[_Rewarded]:
    """Yield the reward of each response with its parts; without end if the reward is not measured.

    Args:
        named: see `TextModule.reward_responses`.
    """
    if not named:
        yield from repeat(_Rewarded(reward=None, reward_parts={}))
    columns = {name: values.tolist() for name, values in named.items()}
    for row, reward in enumerate(columns.pop(REWARD)):
        parts = {name.removeprefix(f"{REWARD}/"): values[row] for name, values in columns.items()}
        yield _Rewarded(reward=reward, reward_parts=parts)
