"""What `ippo replay` prints fits into 80 columns and controls no terminal, whatever a model wrote."""

from __future__ import annotations

import math
from typing import Any

from hostile_texts import hostile_texts
from rich.cells import cell_len
from torch import nn

from ippo_lightning.cli.replay_table import WIDTH, module_lines, replay_lines, row_lines
from ippo_lightning.modules import Diagnosis
from ippo_lightning.modules.pass_numbers import Numbers, PassNumbers, Place
from ippo_lightning.storage.untrusted_text import visible_text


def step_of(texts: list[tuple[str, str]]) -> dict[str, Any]:
    return {"calls": [[1], [2]], "failed_pass": 1, "texts": texts}


def numbers_with(names: list[str], *, broken: str | None = None) -> PassNumbers:
    numbers = PassNumbers(nn.Linear(1, 1))
    for name in names:
        fine = Numbers(1.5)
        numbers.places[name] = Place(name, "Linear", fine, fine, fine, fine)
    if broken is not None:
        place = numbers.places[broken]
        place.output = Numbers(1.5, "NaN")
        numbers.forward.note(place, place.input, place.output)
    return numbers


LAYERS = [f"policy.model.model.layers.{layer}.{part}" for layer in range(30) for part in ("self_attn", "mlp")]


def test_no_text_of_a_model_controls_the_terminal() -> None:
    for text in hostile_texts(300):
        short = text[:5000]
        found = Diagnosis(
            losses=(1.0, math.nan), failed_pass=1, rows={0: "loss"}, row_losses=(math.nan,), parameter=short
        )
        numbers = numbers_with([short], broken=short)
        for line in replay_lines(short, found, numbers, step=step_of([(short, short)]), origin=short, all_modules=True):
            assert cell_len(line) <= WIDTH
            assert visible_text(line) == line


def test_modules_far_from_the_fault_are_one_line() -> None:
    lines = module_lines(numbers_with(LAYERS, broken=LAYERS[20]), all_modules=False)
    assert lines[0] == "A dot at the beginning of a name stands for policy.model.model.layers."
    assert [line for line in lines if line.startswith("...")] == [
        "... 14 modules, all finite",
        "... 33 modules, all finite",
    ]
    (marked,) = (line for line in lines if line.endswith("<F"))
    assert marked.split() == [".10.self_attn", "1.5e+00", "NaN", "1.5e+00", "1.5e+00", "<F"]
    assert len(module_lines(numbers_with(LAYERS), all_modules=True)) == 60 + 3


def test_rows_that_break_the_pass_come_before_others_if_there_are_many() -> None:
    losses = (*[1.0] * 99, math.nan)
    found = Diagnosis(losses=(1.0, math.nan), failed_pass=1, rows={99: "loss"}, row_losses=losses)
    lines = row_lines(found, step_of([(f"prompt {row}", "response") for row in range(100)]))
    assert len(lines) == 22
    assert lines[-2].split() == ["99", "nan", "loss", "prompt", "99", "|", "response"]
    assert lines[-1] == "... 80 more rows"


def test_a_pass_other_than_that_of_the_run_gets_none_of_its_texts() -> None:
    found = Diagnosis(losses=(math.nan,), failed_pass=0, rows={0: "loss"}, row_losses=(math.nan,))
    assert "secret" not in "".join(row_lines(found, step_of([("secret", "secret")])))


def test_a_repetition_that_is_finite_says_that_the_run_was_not() -> None:
    lines = replay_lines(
        "head",
        Diagnosis(losses=(1.0, 2.0)),
        numbers_with(LAYERS[:2]),
        step=step_of([]),
        origin="",
        all_modules=False,
    )
    text = " ".join(lines)
    assert "in the run, pass 1 was not finite: device or precision makes the difference" in text
    assert "forward: every module is finite backward: every module is finite" in text
