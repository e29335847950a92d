"""`ippo evaluate RUN`: the run's own numbers again, a record of each response, runs side by side, and mistakes."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from evaluated_run import PROMPTS, SAMPLES, files_of, fit_words
from pyarrow import parquet
from rich.cells import cell_len

from ippo_lightning.cli.evaluate_runs import labels, sampling_of
from ippo_lightning.cli.evaluated_model import named_model
from ippo_lightning.cli.experiment_paths import packaged_root
from ippo_lightning.cli.main import main
from ippo_lightning.cli.settings import EvaluateSettings
from ippo_lightning.errors import UserError
from ippo_lightning.modules import TextModule
from ippo_lightning.policies import SamplingSettings
from ippo_lightning.run.items import Item

SINGLE_PRECISION = 1e-6
"""The states of a run's own metrics are float32."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that began with the packaged model, which is right in most of its answers."""
    run = tmp_path_factory.mktemp("finished") / "ppo"
    assert main(fit_words(run)) == 0
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "ppo"))


def results(folder: Path) -> tuple[dict[str, Any], list[Item]]:
    """The numbers and the items of the one evaluation below a folder."""
    (path,) = folder.rglob("evaluation.json")
    items: list[Any] = parquet.read_table(path.parent / "items.parquet").to_pylist()
    return json.loads(path.read_text(encoding="utf-8")), items


def values(content: dict[str, Any]) -> dict[str, float]:
    return {name: number["value"] for name, number in content["numbers"].items()}


def files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith("evaluations/")}


def error_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("ippo: error: ")
    assert "\n" not in printed
    return printed.removeprefix("ippo: error: ")


def test_a_run_has_its_own_final_numbers_again_and_nothing_else_changes(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(run)
    assert main(["evaluate", str(run)]) == 0
    assert files(run) == before
    content, items = results(run)
    found = values(content)
    own = json.loads((run / "results.json").read_text(encoding="utf-8"))
    own["pass_at_4"] = own["pass_at_k"]
    shared = {name for name in found if name in own}
    assert {name: found[name] for name in shared} == pytest.approx(
        {name: own[name] for name in shared}, abs=SINGLE_PRECISION
    )
    assert set(found) == {*shared, "pass_at_1", "pass_at_2"}
    assert found == pytest.approx(of_items(items), abs=1e-12)
    assert len(items) == PROMPTS * SAMPLES
    assert content["settings"]["model"]["name"] == "checkpoints/iteration_0000001.ckpt"
    assert content["settings"]["versions"]["torch"]
    printed = capsys.readouterr().out
    assert "ppo: checkpoints/iteration_0000001.ckpt (iteration 1)" in printed
    assert {"pass@2", "pass@4"} <= set(printed.split())
    assert "pass@1" not in printed  # it is the exact match; the file has it
    assert_fits(printed)


def of_items(items: list[Item]) -> dict[str, float]:
    """The numbers of items by their definitions."""
    groups = [[one for one in items if one["prompt_index"] == prompt] for prompt in range(PROMPTS)]
    assert all([one["sample"] for one in group] == list(range(SAMPLES)) for group in groups)
    right = [one for one in items if one["correct"]]
    found = {
        "exact_match": len(right) / len(items),
        "unfaithful_fraction": sum(one["label"] != "faithful" for one in right) / len(right),
        "response_tokens_mean": sum(one["response_tokens"] for one in items) / len(items),
        "truncated_fraction": sum(one["truncated"] for one in items) / len(items),
        "majority_vote": sum(map(vote, groups)) / PROMPTS,
    }
    for k in (1, 2, 4):
        chosen = [[any(one["correct"] for one in part) for part in itertools.combinations(g, k)] for g in groups]
        found[f"pass_at_{k}"] = sum(sum(parts) / len(parts) for parts in chosen) / PROMPTS
    counts = Counter(one["label"] for one in items)
    for label in ("faithful", "false_positive", "shortcut", "nonsense", "wrong_answer"):
        found[f"label/{label}"] = counts[label] / len(items)
    return found


def vote(group: list[Item]) -> float:
    counts = Counter(one["answer"] for one in group if one["answer"] is not None)
    winners = [answer for answer, count in counts.items() if count == max(counts.values())]
    return winners.count(group[0]["reference"]) / len(winners) if winners else 0.0


def assert_fits(printed: str) -> None:
    lines = [line for line in printed.splitlines() if not line.startswith("Results: ")]
    assert max(map(cell_len, lines)) <= 80


def test_runs_stand_side_by_side_and_an_evaluation_is_not_made_twice(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other" / "ppo"))
    third = Path(shutil.copytree(run, tmp_path / "third" / "ppo"))
    (third / "results.json").unlink()
    shutil.rmtree(third / "model")  # as if it still ran
    words = ["evaluate", str(run), str(other), str(third), "--batch_size", "4", "--samples", "2"]
    assert main(words) == 0
    first = files_of_evaluation(run)
    assert first["items.parquet"] == files_of_evaluation(other)["items.parquet"]
    printed = capsys.readouterr().out
    assert f"minus …{f'{run.parent.name}/ppo'[-23:]}, over the same prompts (6, 6)" in printed
    assert "third/ppo: checkpoints/iteration_0000001.ckpt (iteration 1; run not ended)" in printed
    assert_fits(printed)
    differences = json.loads(first["differences.json"])["differences"]
    assert set(differences) == {"other/ppo", "third/ppo"}
    end = 1 - 0.6096657120978346  # of Wilson's interval for 6 of 6, see test_report_ratio_intervals.py
    equal = {"value": 0.0, "interval": pytest.approx([-end, end], abs=1e-12), "prompts": PROMPTS}
    assert differences["other/ppo"]["exact_match"] == equal

    def sampled(*_: Any) -> None:
        raise AssertionError("the items are there")

    monkeypatch.setattr(TextModule, "sample", sampled)
    assert main(words) == 0
    assert files_of_evaluation(run) == first
    assert main([*words, "--k", "[1]"]) == 0  # of the same responses
    assert set(values(results(other)[0])) & {"pass_at_1", "pass_at_2"} == {"pass_at_1"}


def files_of_evaluation(run: Path) -> dict[str, bytes]:
    (folder,) = (run / "evaluations").iterdir()
    return files_of(folder)


@pytest.mark.slow
def test_another_model_is_measured_on_the_prompts_of_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--split", "validation", "--samples", "2", "--max_new_tokens", "16"]
    words = ["evaluate", str(run), "--model", str(run / "model"), *common, "--output", str(tmp_path / "trained")]
    assert main(words) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--baseline", "start", *common, "--output", str(tmp_path / "both")]) == 0
    printed = capsys.readouterr().out
    assert "minus start, over the same prompts (2)" in printed
    assert f"start: start of {run}, " in printed
    places = {"trained": tmp_path / "trained", "start": tmp_path / "both/start", "checkpoint": tmp_path / "both/ppo"}
    found = {name: results(place) for name, place in places.items()}
    differences = json.loads((tmp_path / "both" / "differences.json").read_text(encoding="utf-8"))
    assert differences["minus"] == "start"
    assert set(differences["differences"]) == {"ppo"}
    assert found["trained"][1] == found["checkpoint"][1]  # the final model is that of the last checkpoint
    model = found["start"][0]["settings"]["model"]
    assert (model["name"], model["iteration"]) == ("start", None)
    assert model["began_with"] == found["checkpoint"][0]["settings"]["model"]["began_with"]
    assert len({content["settings"]["model"]["weights"] for content, _ in found.values()}) == 2
    assert not (run / "evaluations").exists()
    line = error_line(
        ["evaluate", str(run), *common, "--model", "start", "--output", str(tmp_path / "trained")], capsys
    )
    assert line.startswith(f"output: {tmp_path / 'trained'} contains another evaluation (model.name: ")


@pytest.mark.slow
def test_another_model_takes_the_place_of_the_run_that_the_policy_continues(run: Path, tmp_path: Path) -> None:
    continued = tmp_path / "continued"
    start = f"--model.init_args.policy.init_args.start_from={run}"
    assert main([*fit_words(continued), start, "--model.init_args.optimizer.learning_rate=1e-3"]) == 0
    for option, model in (("last", None), ("trained", continued / "model"), ("first", run / "model")):
        words = [] if model is None else ["--model", str(model)]
        common = ["--samples", "1", "--max_new_tokens", "4", "--output", str(tmp_path / option)]
        assert main(["evaluate", str(continued), *words, *common]) == 0
    weights = [results(tmp_path / name)[0]["settings"]["model"]["weights"] for name in ("last", "trained", "first")]
    assert weights[0] == weights[1] != weights[2]


def test_a_model_of_the_axis_is_found_by_the_names_of_fit(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the files are those of the package
    found = named_model("experiments/models/qwen3-4b.yaml", option="model")
    assert found == named_model("qwen3-4b", option="model")
    assert found.pretrained == "Qwen/Qwen3-4B"
    assert Path(found.settings["chat_template"]).is_file()
    assert set(found.settings) >= {"gradient_checkpointing", "tokenizer"}
    assert not set(found.settings) & {"lora", "start_from", "config"}
    words = ["evaluate", str(finished), "--model", "arithmetic_llama", "--samples", "1", "--max_new_tokens", "4"]
    assert main([*words, "--output", "out"]) == 0
    model = results(tmp_path / "out")[0]["settings"]["model"]
    assert model["name"] == str(packaged_root() / "models/arithmetic_llama")


def test_a_run_without_checkpoints_is_measured_by_its_final_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "checkpoints")
    words = ["evaluate", str(run), "--samples", "1", "--temperature", "0", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    content, items = results(tmp_path / "out")
    assert content["settings"]["model"]["name"] == str(run / "model")
    assert content["settings"]["sampling"]["greedy"]
    assert len(items) == PROMPTS
    shutil.rmtree(run / "model")
    line = error_line(words, capsys)
    assert line.startswith(f"run: {run} has neither a checkpoint nor a final model")


@pytest.mark.slow
def test_a_report_and_a_new_run_do_not_see_evaluations(run: Path) -> None:
    assert main(["evaluate", str(run), "--samples", "1"]) == 0
    assert main(["report", str(run)]) == 0
    assert main(["fit", "--resume", str(run), "--loop.max_iterations", "2"]) == 0
    assert (run / "evaluations").exists()
    assert main([*fit_words(run), "--loop.overwrite=true"]) == 0
    assert not (run / "evaluations").exists()  # they were of the run that is gone


WRONG: dict[str, tuple[list[str], str]] = {
    "no samples": (["--samples", "0"], "samples: 0 is out of range; expected an integer >= 1"),
    "more than there are": (["--samples", "2", "--k", "[1, 4]"], "k: 4 is out of range; expected integers from 1 to 2"),
    "more than the run has": (["--k", "[8]"], "k: 8 is out of range with 4 samples per prompt; expected 1 to 4"),
    "no such model": (["--model", "./nowhere"], "model: ./nowhere does not exist; expected a folder, a Hub id"),
    "no such baseline": (["--baseline", "./nowhere"], "baseline: ./nowhere does not exist; expected a folder"),
    "no such file": (
        ["--model", "quen3-4b.yaml"],
        "model: 'quen3-4b.yaml' is not a file; did you mean 'qwen3-4b'?",
    ),
    "an overlay": (["--baseline", "lora"], "lora.yaml names no pretrained model to measure"),
    "no such Hub id": (["--model", "nobody/nothing"], "model: cannot load 'nobody/nothing'"),
    "a checkpoint of another model": (["--model", "start", "--checkpoint", "best"], "checkpoint: best is of the run's"),
    "no such checkpoint": (["--checkpoint", "none.ckpt"], "checkpoint: none.ckpt does not exist"),
    "a temperature below 0": (["--temperature", "-1"], "temperature: -1.0 is out of range"),
    "copies": (["--temperature", "0", "--samples", "2"], "samples: 2 responses are all the same at temperature 0"),
    "copies by the run's settings": (["--temperature", "0"], "samples: 4 responses are all the same"),
    "an experiment": (["--task", "arithmetic"], "task: cannot be combined with a RUN"),
    "an unknown option": (["--smaples", "2"], "unrecognized arguments: --smaples"),
    "a split of another case": (["--split", "Test"], "split"),
    "no room": (["--max_new_tokens", "5000"], "max_new_tokens: 5000 leaves no room for prompt 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line(
    name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words, expected = WRONG[name]
    assert expected in error_line(["evaluate", str(finished), *words], capsys)
    assert not (finished / "evaluations").exists()


def test_a_folder_that_is_no_run_is_one_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_line(["evaluate", str(tmp_path)], capsys)
    assert line == f"run: {tmp_path} has no config.yaml; expected the folder of a run of `ippo fit`"
    (tmp_path / "comparison.json").write_text("{}")
    assert "is a comparison; expected one of its runs" in error_line(["evaluate", str(tmp_path)], capsys)
    assert "is given twice" in error_line(["evaluate", str(finished), str(finished)], capsys)
    line = error_line(["evaluate", str(finished), "--output", str(finished)], capsys)
    assert line.startswith(f"output: {finished} is the folder of a run")
    for place in ("model", "model/numbers", "checkpoints", "csv/more"):
        line = error_line(["evaluate", str(finished), "--output", str(finished / place)], capsys)
        assert line.startswith(f"output: {finished / place} is ")
        assert line.endswith("; name another folder")


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        (["runs/ppo"], ["ppo"]),
        (["runs/a/seed_1", "runs/b/seed_1"], ["a/seed_1", "b/seed_1"]),
        (["a", "b/"], ["a", "b"]),
    ],
)
def test_a_run_is_named_by_what_tells_it_apart(runs: list[str], names: list[str]) -> None:
    assert labels([Path(run) for run in runs]) == names


def test_what_is_not_given_is_as_in_the_run() -> None:
    own = SamplingSettings(num_responses=3, max_new_tokens=7, temperature=0.5, greedy=True)
    assert sampling_of(own, EvaluateSettings()) == own
    changed = sampling_of(own, EvaluateSettings(temperature=0.7, samples=8))
    assert (changed.temperature, changed.greedy, changed.num_responses, changed.max_new_tokens) == (0.7, False, 8, 7)
    with pytest.raises(UserError, match="3 responses are all the same"):
        sampling_of(own, EvaluateSettings(temperature=0.0))


def test_its_help_fits_a_terminal_and_the_help_of_experiments_names_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["evaluate", "runs/any", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: ippo evaluate RUN [RUN ...]")
    assert any(line.strip().startswith("--samples SAMPLES") for line in lines)
    assert max(map(len, lines)) <= 80
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert capsys.readouterr().out.startswith(lines[0].partition(" [--")[0])
