"""`ippo replay` repeats a step of a run that ended by NaN, in any precision, and shows the module that breaks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from experiment_files import change, write
from rich.cells import cell_len
from transformers import AutoModelForCausalLM, AutoTokenizer

from ippo_lightning.cli.main import main


@pytest.fixture
def broken_run(experiment: dict[str, Any], tiny_model: Path, tmp_path: Path, capsys: Any) -> Path:
    """The folder of an SFT run in bf16-mixed that ended at its first step, by a weight that rounds to infinity.

    The weight meets a feature that is exactly 0: in float32 the product is 0, in bfloat16 it is infinity times 0.
    """
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        mlp = model.model.layers[0].mlp
        mlp.up_proj.weight[3] = 0.0
        mlp.down_proj.weight[5, 3] = 3.4e38
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "broken")
    change(experiment, "model.class_path", "ippo_lightning.SFTModule")
    policy = {"pretrained": str(tmp_path / "broken"), "value": "none", "reference": "none", "self_check": False}
    experiment["model"]["init_args"] = {
        "policy": {"class_path": "ippo_lightning.policies.CausalLMPolicy", "init_args": policy},
        "evaluation": {"num_responses": 1, "max_new_tokens": 8},
    }
    change(experiment, "data.init_args.stage", "sft")
    change(experiment, "data.init_args.task.init_args.num_demonstrations", 16)
    change(experiment, "loop.evaluate_first", False)
    change(experiment, "fabric.precision", "bf16-mixed")
    experiment["callbacks"] = []
    assert main(["fit", "--config", write(experiment, tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"`ippo replay {tmp_path / 'run'}` repeats it" in said
    return tmp_path / "run"


def replayed(run: Path, capsys: Any, *words: str) -> list[str]:
    assert main(["replay", str(run), *words]) == 0
    lines: list[str] = capsys.readouterr().out.splitlines()
    assert all(cell_len(line) <= 80 for line in lines), lines
    return lines


def test_the_module_that_breaks_in_half_precision_is_finite_in_full(broken_run: Path, capsys: Any) -> None:
    lines = replayed(broken_run, capsys)
    text = " ".join(lines)
    assert lines[0].startswith("step 0 of ")
    assert "SFTModule, on cpu, precision of the run (bfloat16, mixed)" in text
    assert "forward: policy.model.model.layers.0.mlp.down_proj (Linear) is the first to break" in text
    (marked,) = (line for line in lines if line.endswith(("<F", "<B")))
    assert marked.split()[0] == ".model.layers.0.mlp.down_proj"
    assert marked.split()[2] == "NaN"
    assert marked.split()[1] not in ("NaN", "inf")
    assert sum(" loss " in line and "|" in line and line.strip()[0].isdigit() for line in lines) == 8
    text = " ".join(replayed(broken_run, capsys, "--precision", "32-true", "--step", "0", "--device", "cpu"))
    assert "precision 32-true" in text
    assert "forward: every module is finite backward: every module is finite" in text
    assert "device or precision makes the difference" in text


@pytest.mark.parametrize(
    "precision",
    ["bf16-mixed", *(pytest.param(each, marks=pytest.mark.slow) for each in ("64-true", "bf16-true", "16-mixed"))],
)
def test_other_precisions(broken_run: Path, capsys: Any, precision: str) -> None:
    text = " ".join(replayed(broken_run, capsys, "--precision", precision, "--all", "true"))
    # float16 ends at 65504, so the weight is infinite there too
    assert ("forward: every module is finite" in text) is (precision == "64-true")
    assert "policy.model.model.layers.0.mlp.down_proj (Linear)" in text or precision == "64-true"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--step", "7"], "has no nonfinite/step_0000007.pt; there are steps 0"),
        (["--device", "cuda:99"], "device: 'cuda:99' is not there; expected auto, cpu, or a GPU that torch finds"),
        (["--device", "abacus"], "device: 'abacus' is not there"),
        (["--precision", "8-true"], "precision: "),
    ],
)
def test_what_cannot_be_repeated_is_one_line(broken_run: Path, capsys: Any, words: list[str], line: str) -> None:
    assert main(["replay", str(broken_run), *words]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said


def test_a_folder_without_such_a_step_is_one_line(tmp_path: Path, capsys: Any) -> None:
    assert main(["replay", str(tmp_path)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said == f"ippo: error: replay: {tmp_path} has no file in nonfinite/; no step of the run was not finite"


def test_a_damaged_file_and_one_of_another_model_are_one_line(broken_run: Path, capsys: Any) -> None:
    file = broken_run / "nonfinite" / "step_0000000.pt"
    step = torch.load(file, weights_only=True)
    for change_of_step, line in (
        ({"fingerprint": "0" * 16}, "is of another model; its frozen parameters are not those of"),
        ({"random": {"python": 3}}, "cannot be repeated on cpu in run ("),
        ({"calls": [[{"record": "Minibatch", "fields": {}}]]}, "the fields of Minibatch are wrong"),
    ):
        torch.save({**step, **change_of_step}, file)
        assert main(["replay", str(broken_run)]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert line in said
    file.write_bytes(file.read_bytes()[:4000])
    assert main(["replay", str(broken_run)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "cannot be read" in said


def test_parameters_that_are_not_in_the_file_come_from_the_checkpoint(broken_run: Path, capsys: Any) -> None:
    file = broken_run / "nonfinite" / "step_0000000.pt"
    torch.save({**torch.load(file, weights_only=True), "parameters": {}}, file)
    lines = replayed(broken_run, capsys)
    assert "parameters: those of iteration_0000000.ckpt, 0 steps earlier" in lines
    assert "down_proj (Linear) is the first to break" in " ".join(lines)
