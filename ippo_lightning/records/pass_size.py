"""How many tokens a pass may have: a number, or what the device's memory allows; smaller if memory runs out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from ippo_lightning.errors import UserError, require_range
from ippo_lightning.records.out_of_memory import MEMORY_ERRORS, is_out_of_memory

FIXED = 16384
"""Tokens of a pass on a CPU, and of the first pass on a GPU, which is measured.

A number and not a measurement, so that a run gives the same bits on any machine: other passes round differently. 16384
tokens keep the products of a layer large, and take about 1 GiB of activations at a width of 768.
"""
_MOST = 2**18
"""More tokens make no pass faster, and leave no room for an error of the measurement."""
_USED = 0.6
"""Part of the free memory that is planned for; attention grows faster than the tokens, and memory is in pieces."""

MaxTokens = int | Literal["auto"]


def require_max_tokens(field: str, value: MaxTokens) -> None:
    """Refuse what is neither a number of tokens nor "auto".

    Args:
        field: as the user writes it.
        value: what the user gave.

    Raises:
        UserError: another value.
    """
    if value != "auto":
        require_range(field, value, at_least=1, integer=True)


def run_in_halves(rows: Tensor, run: Callable[[Tensor], None], *, field: str, can_retry: bool = True) -> None:
    """Run a pass; if memory runs out, run its halves instead.

    Args:
        rows: of the pass, shape [chosen], int64.
        run: called with rows; leaves nothing behind if it fails.
        field: the setting of the size of a pass, as the user writes it.
        can_retry: False for passes that ranks make together.

    Raises:
        UserError: a pass of one row does not fit, or it may not be made again.
    """
    try:
        run(rows)
        return
    except MEMORY_ERRORS as error:
        if not is_out_of_memory(error):
            raise
    # Outside of the except block, whose traceback keeps the tensors of the failed pass alive.
    if len(rows) < 2 or not can_retry:
        raise does_not_fit(field, len(rows))
    warnings.warn(f"{field}: a pass of {len(rows)} rows does not fit in the device's memory, halving it", stacklevel=3)
    for half in rows.tensor_split(2):
        run_in_halves(half, run, field=field)


def does_not_fit(field: str, num_rows: int) -> UserError:
    """Return the error for a pass that cannot be made smaller.

    Args:
        field: the setting of its size, as the user writes it.
        num_rows: of the pass.
    """
    what = "one row does" if num_rows <= 1 else f"a pass of {num_rows} rows does"
    return UserError(
        f"{field}: {what} not fit in the device's memory; use a smaller number, shorter rows, "
        "gradient_checkpointing: true, or a device with more memory"
    )


class PassSize:
    """The tokens of a pass; it becomes smaller if memory runs out, and stays so.

    Args:
        setting: a number, or "auto": `FIXED` on a CPU, and on a GPU the largest power of two for which memory per token
            of the first pass, times tokens, is less than 0.6 of the free memory.
        field: the setting as the user writes it, for messages.
    """

    def __init__(self, setting: MaxTokens, *, field: str) -> None:
        self.field = field
        self.setting = setting
        self.tokens = FIXED if setting == "auto" else int(setting)
        self._is_measured = setting != "auto"
        self._attempted = (0, 0)

    @contextmanager
    def measuring(self, device: torch.device, *, tokens: int, largest: int | None = None) -> Iterator[None]:
        """Measure the pass inside the block, if the number is to be chosen and is not yet.

        Args:
            device: of the pass.
            tokens: of the pass, padding included.
            largest: tokens of its largest row, for `shrink_attempted`; None for all of them.
        """
        self._attempted = (tokens, tokens if largest is None else largest)
        if self._is_measured or device.type != "cuda" or tokens < 1:
            yield
            return
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield
        if self._is_measured:  # memory has run out inside the block
            return
        taken = torch.cuda.max_memory_allocated(device) - before
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - before
        self.choose(bytes_per_token=taken / tokens, free=free)

    def choose(self, *, bytes_per_token: float, free: float) -> None:
        """Choose the tokens of the later passes.

        Args:
            bytes_per_token: measured, > 0.
            free: bytes that a pass may take.
        """
        fitting = max(_USED * free / max(bytes_per_token, 1.0), 1.0)
        # A power of two, so that a little more or less free memory chooses the same passes.
        self.tokens = min(2 ** int(math.log2(fitting)), _MOST)
        self._is_measured = True

    def shrink(self, tokens: int, *, largest: int, can_retry: bool = True, what: str = "row") -> None:
        """Allow half as many tokens as a pass for which memory ran out.

        Args:
            tokens: of the pass that failed, padding included; it may have had fewer than it was allowed.
            largest: tokens of its largest row.
            can_retry: whether the pass may be made again; ranks that make their passes together cannot do it alone.
            what: what a row is, for the message.

        Raises:
            UserError: a pass of one row does not fit, or it may not be made again.
        """
        if tokens <= largest:
            raise UserError(
                f"{self.field}: one {what} of {largest} tokens does not fit in the device's memory; use shorter "
                f"{what}s, gradient_checkpointing: true, or a device with more memory"
            )
        if not can_retry:
            raise UserError(
                f"{self.field}: a pass of {tokens} tokens does not fit in the device's memory; set a smaller one"
            )
        self.lower(tokens)
        warnings.warn(
            f"{self.field}: the device's memory is too small, continuing with {self.tokens} tokens", stacklevel=3
        )

    def shrink_attempted(self, *, can_retry: bool = True, what: str = "row") -> None:
        """Do the same for the pass that `measuring` was last called for.

        Args:
            can_retry: see `shrink`.
            what: see `shrink`.
        """
        tokens, largest = self._attempted
        self.shrink(tokens, largest=largest, can_retry=can_retry, what=what)

    def lower(self, tokens: int) -> None:
        """Allow at most half as many tokens as a pass for which memory ran out, without a warning.

        Args:
            tokens: of the pass, padding included.
        """
        self.tokens = max(min(self.tokens, tokens) // 2, 1)
        # What the memory allows is known now; a measurement would choose too much again.
        self._is_measured = True

    def state_dict(self) -> dict[str, Any]:
        """Return the number of tokens, so that a resumed run makes the same passes."""
        return {"tokens": self.tokens, "is_measured": self._is_measured, "setting": self.setting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned, unless another number has been set since."""
        if state.get("setting", self.setting) != self.setting:
            return
        self.tokens, self._is_measured = int(state["tokens"]), bool(state["is_measured"])
