"""What can be done with a run: go on with it, export it, report on it; and what the command line says of itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from experiment_files import TINY, change, write
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ippo_lightning.cli.main import main
from ippo_lightning.cli.model_card import model_card
from ippo_lightning.data import arithmetic_tokenizer
from ippo_lightning.policies import CausalLMPolicy
from ippo_lightning.run.checkpoint_folder import CheckpointFolder

POLICY = "model.init_args.policy.init_args"
COMMANDS = ("fit", "evaluate", "compare", "export", "report")
FLOAT32_ROUNDING = 1e-5


@pytest.fixture
def run(experiment: dict[str, Any], tmp_path: Path) -> Path:
    """A finished run of four iterations that trained all weights."""
    change(experiment, "loop.best_metric", "exact_match")
    assert main(["fit", "--config", write(experiment, tmp_path)]) == 0
    return tmp_path / "run"


@pytest.fixture
def adapter_run(experiment: dict[str, Any], tmp_path: Path) -> Path:
    """A finished run that trained an adapter."""
    change(experiment, f"{POLICY}.lora", {"r": 2})
    change(experiment, "model.init_args.optimizer.learning_rate", 0.05)
    assert main(["fit", "--config", write(experiment, tmp_path)]) == 0
    return tmp_path / "run"


def parameters(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["parameters"]


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_a_run_goes_on_by_its_folder_alone_also_where_it_was_moved(experiment: dict[str, Any], tmp_path: Path) -> None:
    config = write(experiment, tmp_path)
    assert main(["fit", "--config", config, "--loop.run_dir", str(tmp_path / "whole")]) == 0
    assert main(["fit", "--config", config, "--loop.max_iterations", "2"]) == 0
    shutil.move(tmp_path / "run", tmp_path / "moved")
    (tmp_path / "experiment.yaml").unlink()
    assert main(["fit", "--resume", str(tmp_path / "moved"), "--loop.max_iterations", "4"]) == 0
    whole, moved = parameters(tmp_path / "whole"), parameters(tmp_path / "moved")
    assert all(torch.equal(whole[name], moved[name]) for name in whole)
    assert not (tmp_path / "run").exists()


def test_a_printed_configuration_makes_the_same_run(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(experiment, tmp_path)
    assert main(["fit", "--config", config]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["fit", "--config", config, "--print_config"])
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out, encoding="utf-8")
    assert main(["fit", "--config", str(printed), "--loop.run_dir", str(tmp_path / "again")]) == 0
    first, again = parameters(tmp_path / "run"), parameters(tmp_path / "again")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_any_value_of_any_object_can_be_overridden(experiment: dict[str, Any], tmp_path: Path) -> None:
    words = [
        "--model.init_args.update.max_grad_norm=0.3",
        f"--{POLICY}.lora.r=3",
        "--data.init_args.batch_size=4",
        '--callbacks=[{"class_path": "ippo_lightning.callbacks.InfluenceFilter", "init_args": {"power": 0.5}}]',
        "--loop.max_iterations=1",
    ]
    assert main(["fit", "--config", write(experiment, tmp_path), *words]) == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    arguments = saved["model"]["init_args"]
    assert arguments["update"]["max_grad_norm"] == 0.3
    assert arguments["policy"]["init_args"]["lora"]["r"] == 3
    assert saved["data"]["init_args"]["batch_size"] == 4
    assert saved["callbacks"][0]["init_args"]["power"] == 0.5


def test_an_exported_model_is_the_policy_and_has_what_a_server_needs(run: Path) -> None:
    assert main(["export", str(run), "--license", "apache-2.0"]) == 0
    folder = run / "export"
    assert torch.equal(logits(folder), logits(run / "model"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]  # by this vLLM chooses its own implementation
    assert config["model_type"] == "llama"
    assert config["vocab_size"] >= len(AutoTokenizer.from_pretrained(folder))
    weights = load_file(folder / "model.safetensors")
    assert all(name.startswith(("model.", "lm_head.")) for name in weights)
    needed = {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"}
    assert needed <= {path.name for path in folder.iterdir()}


def test_an_export_needs_neither_the_data_nor_the_callbacks_of_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("the data were removed")

    monkeypatch.setattr("ippo_lightning.data.TextDataModule.__init__", gone)
    monkeypatch.setattr("ippo_lightning.callbacks.InfluenceFilter.__init__", gone)
    assert main(["export", str(run)]) == 0


def test_the_card_says_where_a_model_comes_from(run: Path, tiny_model: Path) -> None:
    assert main(["export", str(run), "--license", "apache-2.0"]) == 0
    card = (run / "export" / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["license"] == "apache-2.0"
    assert "base_model" not in metadata  # a folder of this machine is no id of the Hub
    assert "- Base model: model\n" in card
    assert "- Began with: the model model\n" in card
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    measured = {entry["type"]: entry["value"] for entry in metadata["model-index"][0]["results"][0]["metrics"]}
    assert measured["exact_match"] == pytest.approx(results["exact_match"], abs=1e-4)
    assert measured["pass@2"] == pytest.approx(results["pass_at_k"], abs=1e-4)
    assert f"| pass@2 | {results['pass_at_k']:.4g} |" in card
    assert "PPOModule" in card
    assert "4 iterations" in card
    assert {"ppo", "influence-filter"} <= set(metadata["tags"])
    assert "95 % interval" in card
    assert "Merged" not in card
    assert "| iterations |" not in card
    assert "| seconds |" not in card
    loading = card.split("```python\n")[1].split("```")[0]
    # five lines that load the folder and continue a prompt
    exec(loading.replace('"FOLDER"', repr(str(run / "export"))), {"PROMPT": "7+12-5?"})
    assert len(loading.splitlines()) == 5
    config = card.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(config)["data"]["init_args"]["task"]["init_args"]["num_train"] == 32

    _, state = CheckpointFolder(run / "checkpoints").read("last")
    next_config = yaml.safe_load(state["config"])
    change(next_config, f"{POLICY}.start_from", str(run))
    change(next_config, f"{POLICY}.pretrained", "nobody/nothing")
    state = {**state, "config": yaml.safe_dump(next_config)}
    card = str(model_card(run, state=state, results=results, form="full", license_name=None))
    assert "- Began with: the run run, which began with the model model\n" in card
    assert "- Base model: model\n" in card
    assert "start_from: run\n" in card
    assert not re.findall(r"/(?:tmp|home|root|Users|var)/", card)


def test_another_precision_and_the_best_checkpoint_can_be_had(run: Path, tmp_path: Path) -> None:
    words = ["--dtype", "bfloat16", "--checkpoint", "best", "--output", str(tmp_path / "out")]
    assert main(["export", str(run), *words]) == 0
    weights = load_file(tmp_path / "out" / "model.safetensors")
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["parameters"]
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    name = "model.layers.0.mlp.up_proj.weight"
    saved = next(value for key, value in best.items() if key.endswith(name))
    assert torch.equal(weights[name], saved.to(torch.bfloat16))


def test_an_adapter_can_be_exported_alone_or_merged(adapter_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert main(["export", str(adapter_run), "--form", "adapter", "--output", str(tmp_path / "adapter")]) == 0
    assert main(["export", str(adapter_run), "--output", str(tmp_path / "merged")]) == 0
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter")
    with torch.no_grad():
        by_adapter = model(input_ids=torch.arange(3, 11)[None]).logits
    merged = logits(tmp_path / "merged")
    assert float((by_adapter - merged).abs().max()) < FLOAT32_ROUNDING
    assert float((merged - logits(tiny_model)).abs().max()) > 100 * FLOAT32_ROUNDING
    metadata = yaml.safe_load((tmp_path / "adapter" / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert metadata["library_name"] == "peft"
    for form in ("adapter", "merged"):
        assert_nothing_leaks(tmp_path / form)


def assert_nothing_leaks(folder: Path) -> None:
    """No file that is uploaded names a folder of this machine; tokenizer.json has tokens alone."""
    texts = {
        path.name: path.read_text(encoding="utf-8") for path in folder.iterdir() if path.suffix in (".md", ".json")
    }
    assert {"README.md", "export.json"} <= texts.keys()
    for name, text in texts.items():
        assert str(folder.parent) not in text, name
        assert not re.findall(r"/(?:tmp|home|root|Users|var)/", text), name


def test_an_export_takes_the_newest_checkpoint_and_says_which(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = run / "checkpoints" / "last.ckpt"
    last.unlink()  # a second name of the newest
    shutil.copy(run / "checkpoints" / "best.ckpt", last)
    (run / "results.json").write_text(json.dumps({"exact_match": 1.0, "iterations": 2}), encoding="utf-8")
    assert main(["export", str(run)]) == 0
    assert capsys.readouterr().out.strip().endswith(f"of {run / 'checkpoints' / 'iteration_0000004.ckpt'}")
    assert torch.equal(logits(run / "export"), logits(run / "model"))
    card = (run / "export" / "README.md").read_text(encoding="utf-8")
    assert "no final results of this model" in card  # those of iteration 2 are of another one


def test_measuring_a_run_takes_the_checkpoint_by_name_and_leaves_its_results(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--config", str(run / "config.yaml"), "--checkpoint", "last"]
    assert main(words) == 0
    assert "iteration_0000004.ckpt" in capsys.readouterr().out
    before = (run / "results.json").read_bytes()
    assert main([*words, "--output", str(run / "results.json")]) == 2
    assert "results.json is a file of the run" in capsys.readouterr().err
    assert main([*words, "--output", str(run / "model/config.json")]) == 2
    assert f"output: {run / 'model'} is the folder of a model" in capsys.readouterr().err
    assert (run / "results.json").read_bytes() == before


def test_a_run_without_checkpoints_is_not_begun_again_by_a_resume(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "checkpoints")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["fit", "--resume", str(run)]) == 2
    assert "has no checkpoint; to begin the run again, use" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_page_or_a_comparison_never_goes_into_a_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "results.json").read_bytes()
    assert main(["report", str(run), "--output", str(run)]) == 2
    assert f"output: {run} is the folder of a run" in capsys.readouterr().err
    grid = {"run_dir": str(run), "methods": {"ppo": {"config": [str(tmp_path / "experiment.yaml")]}}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid), encoding="utf-8")
    assert main(["compare", "--config", str(tmp_path / "grid.yaml")]) == 2
    assert f"run_dir: {run} is the folder of a run" in capsys.readouterr().err
    assert (run / "results.json").read_bytes() == before
    assert not (run / "comparison.json").exists()


def merging_error(folder: Path) -> float:
    found = re.search(r"differ by (\S+) at most", (folder / "README.md").read_text(encoding="utf-8"))
    assert found
    return float(found[1])


@pytest.mark.parametrize("kind", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_quantised_policy_is_exported_dense_and_says_what_that_changed(
    kind: str, experiment: dict[str, Any], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    wide = {**TINY, "hidden_size": 64, "intermediate_size": 128}
    CausalLMPolicy(config=wide, tokenizer=arithmetic_tokenizer(), value="none", reference="none").save_pretrained(base)
    change(experiment, POLICY, {"pretrained": str(base), "lora": {"r": 2}, "quantization": kind})
    assert main(["fit", "--config", write(experiment, tmp_path)]) == 0
    for dtype in ("float32", "bfloat16"):
        words = ["--dtype", dtype, "--output", str(tmp_path / dtype)]
        assert main(["export", str(tmp_path / "run"), *words]) == 0
        weights = load_file(tmp_path / dtype / "model.safetensors")
        assert {str(tensor.dtype) for tensor in weights.values()} == {f"torch.{dtype}"}
    # the dequantised weights are those that were trained on; what is left is rounding, of int8 that of activations
    assert merging_error(tmp_path / "float32") < (1e-4 if kind == "nf4" else 3e-2)
    assert merging_error(tmp_path / "float32") < merging_error(tmp_path / "bfloat16") < 0.1


@pytest.mark.slow
def test_one_run_or_several_make_a_page(
    experiment: dict[str, Any], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(tmp_path / "experiment.yaml")
    for seed in (1, 2):
        folder = str(tmp_path / "ppo" / f"seed_{seed}")
        words = ["--loop.run_dir", folder, "--seed_everything", str(seed), "--callbacks", "[]", "--loop.max_iterations"]
        assert main(["fit", "--config", config, *words, "2"]) == 0
    before = (run / "results.json").read_bytes()
    assert main(["report", str(run)]) == 0
    assert (run / "report" / "report.html").exists()
    assert (run / "results.json").read_bytes() == before  # of the run, not of the page
    capsys.readouterr()
    seeds = [str(tmp_path / "ppo" / f"seed_{seed}") for seed in (1, 2)]
    assert main(["report", str(run), *seeds, "--output", str(tmp_path / "page")]) == 0
    assert "report.html" in capsys.readouterr().out
    results = json.loads((tmp_path / "page" / "results.json").read_text(encoding="utf-8"))
    assert {name: method["seeds"] for name, method in results["methods"].items()} == {"run": [None], "ppo": [1, 2]}


def test_a_run_under_way_has_a_page_too(run: Path) -> None:
    (run / "results.json").unlink()
    assert main(["report", str(run)]) == 0
    page = (run / "report" / "report.html").read_text(encoding="utf-8")
    assert "ended after 4 iterations without a final test" in page
    assert "Episodes kept for the update" in page


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_terminal(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 160
    assert f"ippo {command}" in lines[0] or "[options]" in lines[0]


def test_the_shell_can_complete_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--print_completion", "shtab-bash"])
    assert stop.value.code == 0
    script = capsys.readouterr().out
    assert "compare" in script
    assert "--loop.max_iterations" in script


@pytest.mark.slow
def test_without_a_terminal_a_run_says_its_results_and_a_line_per_iteration(
    experiment: dict[str, Any], tmp_path: Path
) -> None:
    change(experiment, "loop.progress_bar", True)
    experiment["callbacks"].append({"class_path": "ippo_lightning.callbacks.CompletionsTable"})
    command = [sys.executable, "-m", "ippo_lightning.cli", "fit", "--config", write(experiment, tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=True)
    assert "exact_match" in done.stdout
    lines = [line.partition(" ")[0] for line in done.stderr.splitlines() if line.strip()]
    assert lines.count("iteration") == experiment["loop"]["max_iterations"], done.stderr
    assert set(lines) == {"iteration", "evaluation"}, done.stderr
    assert (tmp_path / "run" / "completions" / "iteration_0000000.parquet").exists()
