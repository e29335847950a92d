"""Apply a language model's head in blocks, so that logits of a whole pass never exist.

A pass holds its hidden states; logits are the hidden width divided into the vocabulary times as large, and their
gradient and softmax as large again. Each block computes its logits, reduces them to numbers per token, and drops them;
the backward computes them a second time.
Source: Chen et al. 2016, arXiv 1604.06174 (recomputation); Wijmans et al. 2024, arXiv 2411.09009 (no full logits).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ippo_lightning.distributed.collectives import any_rank
from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.policies.contexts import evaluating
from ippo_lightning.policies.sequences import Sequences, keeps_logits, without_padding
from ippo_lightning.records.row_bands import row_band

BLOCK_ENTRIES = 2**24
"""Logits of a block, 64 MiB in float32.

Smaller blocks read the weights of the head more often than their products take time: a block of a vocabulary of 128k
is 128 tokens. Larger ones are no longer small beside the hidden states of a pass.
"""

OfLogits = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""Takes logits [rows, steps, vocab] and the ids [rows, steps] that they predict; returns tensors [rows, steps]."""


class HeadResults(NamedTuple):
    """What a pass leaves of its logits."""

    parts: tuple[Tensor, ...]
    """The results of `OfLogits`, each [rows, steps]."""
    features: Tensor
    """[rows, steps + 1, width] the head's input at the response tokens and at the last token of the prompt."""


class Span(NamedTuple):
    """A block of a pass."""

    rows: slice
    steps: slice


def spans_of(num_rows: int, num_steps: int, *, tokens: int) -> list[Span]:
    """Cut a pass into blocks of at most so many tokens.

    Args:
        num_rows: of the pass.
        num_steps: of each row.
        tokens: of a block, >= 1.
    """
    band = min(num_rows, tokens)
    width = max(tokens // band, 1)
    return [
        Span(slice(row, min(row + band, num_rows)), slice(step, min(step + width, num_steps)))
        for row in range(0, num_rows, band)
        for step in range(0, num_steps, width)
    ]


def head_in_blocks(
    network: PreTrainedModel, sequences: Sequences, response_ids: Tensor, of_logits: OfLogits
) -> HeadResults | None:
    """Reduce the logits of a pass block by block, if they are larger than one block.

    Args:
        network: a causal language model.
        sequences: prompt and response.
        response_ids: [rows, steps] int64, the last `steps` tokens of the sequences.
        of_logits: reduces logits to numbers per token; position-wise.

    Returns:
        None if the logits are no larger than one block, or if the model computes other logits in blocks: its own
        forward is then to be taken.
    """
    rows, steps = response_ids.shape
    vocabulary = int(network.config.get_text_config().vocab_size)
    positions = steps + 1 if keeps_logits(network) else sequences.input_ids.shape[1]
    tokens = max(BLOCK_ENTRIES // vocabulary, 1)
    is_large = rows * positions > tokens
    if is_sharded(network):  # trying the model on a few rows is a pass that all ranks make together
        is_large = any_rank(is_large, device=response_ids.device)
    trunk = _trunk_of(network, sequences, steps) if is_large else None
    if trunk is None:
        return None
    return _run(network, trunk, sequences, response_ids, of_logits, spans_of(rows, steps, tokens=tokens))


def _run(
    network: PreTrainedModel,
    trunk: nn.Module,
    sequences: Sequences,
    response_ids: Tensor,
    of_logits: OfLogits,
    spans: list[Span],
) -> HeadResults:
    found: list[HeadResults] = []

    def at_trunk(_module: nn.Module, _inputs: object, output: Any) -> Any:
        if found:  # one of the blocks, in which the trunk only answers
            return None
        steps = response_ids.shape[1]
        features = without_padding(output.last_hidden_state[:, -steps - 1 :], sequences)
        found.append(HeadResults((), features))
        parts = _by_block(network, trunk, output, features[:, :-1], response_ids, of_logits, spans)
        found[0] = HeadResults(parts, features)
        # The model's own head still runs; one position makes that cheap.
        return replace(output, last_hidden_state=features[:1, -1:])

    def at_network(_module: nn.Module, _inputs: object, _output: Any) -> Any:
        # As the model's output: FSDP2 gathers its parameters when a gradient reaches what the forward has returned.
        return tuple(found[0])

    # Inside the model's own forward, where FSDP2 keeps the parameters of the head.
    handles = [trunk.register_forward_hook(at_trunk), network.register_forward_hook(at_network, prepend=True)]
    try:
        call: Any = network
        parts, features = call(**sequences._asdict(), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return HeadResults(parts, features)


def _by_block(
    network: PreTrainedModel,
    trunk: nn.Module,
    output: Any,
    hidden: Tensor,
    ids: Tensor,
    of_logits: OfLogits,
    spans: list[Span],
) -> tuple[Tensor, ...]:
    shell = replace(output, last_hidden_state=None)

    def of_block(block: Tensor, chosen: Tensor, first_row: int) -> tuple[Tensor, ...]:
        with row_band(first_row):
            return of_logits(_logits(network, trunk, shell, block, chosen), chosen)

    bands: dict[int, list[tuple[Tensor, ...]]] = {}
    for span in spans:
        block, chosen, first = hidden[span.rows, span.steps], ids[span.rows, span.steps], span.rows.start
        # A head with an adapter may have dropout, so the state of the random generator is kept.
        made = (
            checkpoint(of_block, block, chosen, first, use_reentrant=False)
            if torch.is_grad_enabled()
            else of_block(block, chosen, first)
        )
        bands.setdefault(first, []).append(made)
    columns = [[torch.cat(part, dim=1) for part in zip(*blocks, strict=True)] for blocks in bands.values()]
    return tuple(torch.cat(part) for part in zip(*columns, strict=True))


def _logits(network: PreTrainedModel, trunk: nn.Module, shell: Any, hidden: Tensor, ids: Tensor) -> Tensor:
    """Return what the model makes of hidden states: its own forward, in which the trunk only answers with them."""
    # So a cap, a scale, a bias or an adapter behind the trunk stays what the model's code makes of it.
    with _answering(trunk, replace(shell, last_hidden_state=hidden)):
        logits: Tensor = network.forward(input_ids=ids, use_cache=False).logits
    return logits


@contextmanager
def _answering(trunk: nn.Module, answer: Any) -> Iterator[None]:
    before = vars(trunk).get("forward")
    vars(trunk)["forward"] = lambda *args, **kwargs: answer
    try:
        yield
    finally:
        if before is None:
            del vars(trunk)["forward"]
        else:  # a library may have put a forward of its own on the instance
            vars(trunk)["forward"] = before


# --- which module is the trunk, and whether blocks give the model's own logits -------------------------------

_KNOWN: WeakKeyDictionary[nn.Module, nn.Module | None] = WeakKeyDictionary()
"""The trunk of each model that was tried; None if it does not work in blocks."""
_TRIED = 8
"""Tokens of prompt and of response, of two rows, that are compared."""


def _trunk_of(network: PreTrainedModel, sequences: Sequences, num_steps: int) -> nn.Module | None:
    """Return the model's trunk if blocks give the model's own logits; else warn once and return None."""
    if network not in _KNOWN:
        first = sequences.input_ids.shape[1] - num_steps
        columns = slice(max(first - _TRIED, 0), first + _TRIED)
        few = Sequences(*(tensor[:2, columns] for tensor in sequences))
        # In evaluation mode, because dropout would make any two passes differ.
        with torch.no_grad(), evaluating(network):
            trunk, difference = _tried(network, few)
        if difference is not None:
            warnings.warn(
                f"policy: {type(network).__name__} cannot apply its head in blocks ({difference}), so each pass holds "
                "the logits of all its tokens; lower micro_batch_size or max_tokens if memory runs out",
                stacklevel=2,
            )
        _KNOWN[network] = trunk if difference is None else None
    return _KNOWN[network]


def _tried(network: PreTrainedModel, few: Sequences) -> tuple[nn.Module | None, str | None]:
    """Return the trunk, and why it does not work in blocks."""
    calls: list[tuple[nn.Module, Any]] = []
    heard: list[Tensor] = []
    head = network.get_output_embeddings()
    with _outermost_calls(network, calls), _inputs_of(head, heard):
        call: Any = network
        own: Tensor = call(**few._asdict(), use_cache=False).logits
    trunk, output = calls[0] if calls else (None, None)
    hidden = getattr(output, "last_hidden_state", None)
    if trunk is None or not is_dataclass(output) or not isinstance(hidden, Tensor):
        return None, "the part before the head returns no last_hidden_state"
    # The critic reads the head's input, and a block must be all that the head reads.
    if len(heard) != 1 or _difference(heard[0], hidden) != 0:
        return None, "its head reads something else than the last hidden state"
    shell: Any = replace(output, last_hidden_state=None)  # type: ignore[type-var]
    # Cut by rows and by columns, also unequal ones: what mixes rows or positions shows as a difference.
    rows, columns = few.input_ids.shape
    spans = [*spans_of(rows, columns, tokens=5), *spans_of(rows, columns, tokens=1)]
    try:
        pairs = [(_logits(network, trunk, shell, hidden[span], few.input_ids[span]), own[span]) for span in spans]
    except Exception as error:  # whatever foreign code cannot do with a block is a reason to leave it alone
        return None, f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    largest = max(_difference(found, expected) for found, expected in pairs)
    scale = float(own[own.isfinite()].abs().max())
    # Products of other shapes round differently; a cap, scale or bias that got lost changes more than that.
    allowed = (2e-2 if own.dtype in (torch.bfloat16, torch.float16) else 1e-4) * scale
    if not largest <= allowed:
        return None, f"its logits differ by {largest:.3g}, allowed is {allowed:.3g}"
    return trunk, None


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two tensors, infinity if they differ in shape or in what is not finite."""
    # A row of padding may be NaN, and a forbidden token has the logit -inf.
    finite = expected.isfinite()
    if found.shape != expected.shape or not torch.equal(found.isfinite(), finite):
        return math.inf
    return float((found[finite].double() - expected[finite].double()).abs().max()) if bool(finite.any()) else 0.0


@contextmanager
def _outermost_calls(network: nn.Module, calls: list[tuple[nn.Module, Any]]) -> Iterator[None]:
    """Append each module that the network's own forward calls itself, with its output, in the order of the calls."""
    depth = [0]

    def enter(_module: nn.Module, _inputs: object) -> None:
        depth[0] += 1

    def leave(module: nn.Module, _inputs: object, output: Any) -> None:
        depth[0] -= 1
        if depth[0] == 0:
            calls.append((module, output))

    handles = []
    for module in network.modules():
        if module is not network:
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _inputs_of(head: nn.Module, inputs: list[Tensor]) -> Iterator[None]:
    handle = head.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    try:
        yield
    finally:
        handle.remove()
