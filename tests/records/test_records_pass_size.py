"""The size of a pass: one number on every CPU, what memory allows on a GPU, smaller if it fails."""

from __future__ import annotations

import pytest
import torch

from ippo_lightning.errors import UserError
from ippo_lightning.records.pass_size import FIXED, PassSize, require_max_tokens, run_in_halves

GIB = 2.0**30


def test_a_cpu_has_one_number_that_no_measurement_changes() -> None:
    size = PassSize("auto", field="scoring.max_tokens")
    with size.measuring(torch.device("cpu"), tokens=100):
        pass
    assert size.tokens == FIXED == 16384


@pytest.mark.parametrize(
    ("bytes_per_token", "free", "tokens"),
    [
        (GIB / 1024, 10 * GIB, 4096),  # 0.6 * 10 * 1024 = 6144, rounded down to a power of two
        (GIB / 1024, 10.5 * GIB, 4096),  # a little more memory gives the same passes
        (1000.0, 70 * GIB, 2**18),  # more than the most
        (GIB, 0.1 * GIB, 1),
    ],
)
def test_a_gpu_has_the_power_of_two_that_fits_in_six_tenths_of_the_free_memory(
    bytes_per_token: float, free: float, tokens: int
) -> None:
    size = PassSize("auto", field="scoring.max_tokens")
    size.choose(bytes_per_token=bytes_per_token, free=free)
    assert size.tokens == tokens


def test_what_did_not_fit_is_halved_down_to_one_row_which_is_then_named() -> None:
    size = PassSize(1000, field="scoring.max_tokens")
    with pytest.warns(UserWarning, match=r"scoring\.max_tokens: .* continuing with 50"):
        size.shrink(100, largest=30)
    with pytest.warns(UserWarning, match="continuing with 15"):
        size.shrink(30, largest=15)
    with pytest.raises(UserError, match=r"scoring\.max_tokens: one episode of 30 tokens does not fit") as raised:
        size.shrink(30, largest=30, what="episode")
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="a pass of 15 tokens does not fit"):
        size.shrink(15, largest=3, can_retry=False)


def test_a_pass_that_does_not_fit_is_run_in_halves_and_a_row_that_does_not_is_named(memory_error: Exception) -> None:
    done: list[int] = []

    def run(rows: torch.Tensor, *, most: int = 2) -> None:
        if len(rows) > most:
            raise memory_error
        done.extend(rows.tolist())

    with pytest.warns(UserWarning, match="micro_batch_size: a pass of 7 rows does not fit"):
        run_in_halves(torch.arange(7), run, field="update.micro_batch_size")
    assert done == list(range(7))
    with pytest.raises(UserError, match="one row does not fit"), pytest.warns(UserWarning, match="halving"):
        run_in_halves(torch.arange(3), lambda rows: run(rows, most=0), field="update.micro_batch_size")
    with pytest.raises(UserError, match="a pass of 7 rows does not fit"):
        run_in_halves(torch.arange(7), run, field="update.micro_batch_size", can_retry=False)


def test_a_resumed_run_has_the_size_that_was_chosen() -> None:
    size = PassSize("auto", field="scoring.max_tokens")
    size.choose(bytes_per_token=GIB / 1024, free=10 * GIB)
    resumed = PassSize("auto", field="scoring.max_tokens")
    resumed.load_state_dict(size.state_dict())
    assert resumed.tokens == 4096


@pytest.mark.parametrize("value", [0, -1, 1.5, "many", True])
def test_neither_a_number_of_tokens_nor_auto_is_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"^scoring\.max_tokens: "):
        require_max_tokens("scoring.max_tokens", value)  # type: ignore[arg-type]
