"""A run changes its folder only when nothing refuses it any more, and an end is that of the run as it is."""

from __future__ import annotations

import csv
import itertools
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Fabric
from lightning.fabric.loggers import CSVLogger
from training_parts import TINY, tiny_data, tiny_loop, tiny_module, tiny_policy

from ippo_lightning.callbacks import EpisodeLog
from ippo_lightning.data import TextDataModule
from ippo_lightning.errors import UserError
from ippo_lightning.modules import PPOModule, SFTModule
from ippo_lightning.report.runs import read_run, why_unfinished
from ippo_lightning.storage.run_folder import (
    BUFFERS,
    DIAGNOSIS,
    EVALUATED,
    FINGERPRINT_VARIABLE,
    FRAMES,
    INTERVENTION,
    TRACE,
    RunFolder,
)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations that came to its end."""
    folder = tmp_path_factory.mktemp("ended") / "run"
    loop = tiny_loop(folder, tiny_module(), test_at_end=True, save_model=True, callbacks=[EpisodeLog()])
    loop.config, loop.command = "seed_everything: 5\n", "ippo fit --task mine"
    loop.fit()
    return folder


@pytest.fixture
def run(ended: Path, tmp_path: Path) -> Path:
    shutil.copytree(ended, tmp_path / "run")
    return tmp_path / "run"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def another_model(run: Path, **changes: Any) -> None:
    loop = tiny_loop(run, tiny_module(policy=tiny_policy(config={**TINY, "hidden_size": 32})), **changes)
    loop.config = "seed_everything: 6\n"
    loop.fit()


def failing_callback(run: Path, **changes: Any) -> None:
    class Refuses:
        def on_fit_start(self, trainer: Any, module: Any) -> None:
            raise UserError("mine: refused")

    loop = tiny_loop(run, tiny_module(), callbacks=[Refuses()], **changes)
    loop.config = "seed_everything: 6\n"
    loop.fit()


class WithoutGrade(TextDataModule):
    """A data module whose task grades nothing."""

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.task = object()


def no_grader(run: Path, **changes: Any) -> None:
    data = WithoutGrade(tiny_data().task, batch_size=8, stage="sft")
    tiny_loop(run, supervised(), data=data, test_at_end=True, **changes).fit()


def supervised() -> SFTModule:
    """A module without a reward, whose mean could be the evaluation."""
    return SFTModule(policy=tiny_policy(value="none", reference="none"))


def no_test_prompts(run: Path, **changes: Any) -> None:
    tiny_loop(run, tiny_module(), data=tiny_data(num_test=0), test_at_end=True, **changes).fit()


@pytest.mark.parametrize(
    ("refused", "way"),
    [
        (another_model, "resume"),  # a new run may have another model
        *itertools.product((failing_callback, no_grader, no_test_prompts), ("resume", "overwrite")),
    ],
)
def test_a_refused_run_leaves_the_folder_as_it_was(refused: Callable[..., None], way: str, run: Path) -> None:
    before = files(run)
    with pytest.raises(UserError):
        refused(run, max_iterations=4, **{way: True})
    assert files(run) == before


@pytest.mark.parametrize(
    ("refused", "words"), [(no_grader, "evaluation needs a grader"), (no_test_prompts, "test split has 0 batches")]
)
def test_a_run_that_cannot_evaluate_says_so_before_its_first_iteration(
    refused: Callable[..., None], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        refused(tmp_path / "run")
    assert not (tmp_path / "run" / "history.jsonl").exists()


def test_a_subclass_that_evaluates_in_its_own_way_needs_no_grader(tmp_path: Path) -> None:
    class Own(PPOModule):
        def evaluate_batch(self, batch: Any, batch_index: int) -> None:
            return

    plain = tiny_module()
    module = Own(policy=tiny_policy(), reward=plain.reward, sampling=plain.sampling)
    module.check_evaluation()
    with pytest.raises(UserError, match=r"model.grader: null.*loop.test_at_end to false"):
        supervised().check_evaluation()


def test_overwriting_removes_the_run_and_nothing_else(run: Path) -> None:
    (run / "mine.txt").write_text("mine")
    for name in (BUFFERS, FRAMES, EVALUATED, DIAGNOSIS, TRACE, INTERVENTION):
        (run / name).mkdir(exist_ok=True)
        (run / name / "old").touch()
    tiny_loop(run, tiny_module(), max_iterations=1, overwrite=True).fit()
    assert sorted(path.name for path in run.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "history.jsonl",
        "mine.txt",
        "origin.json",
    ]
    assert len((run / "history.jsonl").read_text(encoding="utf-8").splitlines()) == 1


def test_the_results_of_an_earlier_end_are_not_those_of_a_longer_run(run: Path) -> None:
    earlier = (run / "results.json").read_bytes()
    tiny_loop(run, tiny_module(), max_iterations=4, resume=True, callbacks=[EpisodeLog()]).fit()
    assert not (run / "results.json").exists()
    assert (run / "results_0000002.json").read_bytes() == earlier
    assert why_unfinished(read_run(run)) == "ended after 4 iterations without a final test"


def test_a_run_writes_with_what_it_began_and_keeps_it_when_it_goes_on(run: Path) -> None:
    longer = tiny_loop(run, tiny_module(), max_iterations=3, resume=True)
    longer.command = "ippo fit --resume"
    longer.fit()
    origin = json.loads((run / "origin.json").read_text(encoding="utf-8"))
    assert origin["command"] == "ippo fit --task mine"
    assert origin["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert origin["machine"].startswith(platform.machine())
    # Nothing that names a user or a host.
    assert platform.node() not in json.dumps(origin)
    assert str(Path.home()) not in json.dumps(origin)


def test_a_report_does_not_mix_results_with_a_longer_history(run: Path) -> None:
    """As after a kill of an earlier version, which left the results where they were."""
    with (run / "history.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"iteration": 2}) + "\n")
    assert not read_run(run).finished
    assert "(newest checkpoint: iteration_0000002.ckpt)" in why_unfinished(read_run(run))


def test_a_run_that_has_ended_keeps_its_results_on_resume(run: Path) -> None:
    before = json.loads((run / "results.json").read_text(encoding="utf-8"))
    tiny_loop(run, tiny_module(), resume=True, test_at_end=True, callbacks=[EpisodeLog()]).fit()
    after = json.loads((run / "results.json").read_text(encoding="utf-8"))
    of_the_clock = {"seconds": 0, "sha256": ""}
    assert before | of_the_clock == after | of_the_clock


def test_a_run_leaves_the_counts_of_each_test_prompt_beside_its_results(run: Path) -> None:
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    outcomes = read_run(run).prompt_outcomes
    assert outcomes is not None
    assert len(outcomes.samples) == results["num_prompts"]
    assert len(outcomes.prompts_sha256) == 64
    assert set(outcomes.samples) == {results["samples_per_prompt"]}
    assert sum(outcomes.correct) / sum(outcomes.samples) == pytest.approx(results["exact_match"])
    # One line: the file of a thousand prompts is still small.
    assert len((run / "test_prompts.json").read_text(encoding="utf-8").splitlines()) == 1


def test_a_result_that_was_changed_is_no_result(run: Path) -> None:
    path = run / "results.json"
    text = path.read_text(encoding="utf-8")
    assert read_run(run).finished
    path.write_text(text.replace('"k": ', '"k": 1'), encoding="utf-8")
    assert not read_run(run).finished


@pytest.mark.parametrize("lost", ["checkpoints", "history.jsonl"])
def test_an_ended_run_without_its_checkpoints_is_not_removed(lost: str, run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / lost).unlink(missing_ok=True) if lost != "checkpoints" else None
    before = files(run)
    with pytest.raises(UserError, match="already contains a run without a checkpoint to resume from"):
        tiny_loop(run, tiny_module(), resume=True).fit()
    assert files(run) == before


def test_a_file_of_a_callback_goes_back_to_the_checkpoint_too(run: Path) -> None:
    def log() -> EpisodeLog:
        return EpisodeLog(file_name="mine.jsonl")

    tiny_loop(run, tiny_module(), max_iterations=3, resume=True, callbacks=[log()]).fit()
    written = (run / "mine.jsonl").read_bytes()
    with (run / "mine.jsonl").open("ab") as file:
        file.write(b'{"iteration": 3, "prompt": "of an iteration without a checkpoint"}\n')
    tiny_loop(run, tiny_module(), max_iterations=3, resume=True, callbacks=[log()]).fit()
    assert (run / "mine.jsonl").read_bytes() == written


def test_a_comparison_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(UserError, match="contains a comparison; name another folder"):
        RunFolder(tmp_path).begin(resume=True, overwrite=True)


def test_a_worker_that_outlives_its_run_does_not_keep_the_lock(tmp_path: Path) -> None:
    program = (
        "import os, sys, time; from pathlib import Path; from ippo_lightning.storage.run_folder import RunFolder\n"
        "folder = RunFolder(Path(sys.argv[1])); folder.begin(resume=False, overwrite=False)\n"
        "pid = os.fork()\n"
        "if pid == 0: print(os.getpid(), flush=True); sys.stdin.read(); os._exit(0)\n"  # until its input is closed
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        with pytest.raises(UserError, match="a run is under way"):
            RunFolder(tmp_path).begin(resume=False, overwrite=False)
        parent.kill()
        parent.wait()
        assert Path(f"/proc/{worker}").exists() or sys.platform != "linux"
        RunFolder(tmp_path).begin(resume=False, overwrite=False)
        RunFolder(tmp_path).release()


def test_a_metric_that_a_callback_logs_at_the_start_stays_when_an_earlier_run_is_replaced(run: Path) -> None:
    class Logs:
        def on_fit_start(self, trainer: Any, module: Any) -> None:
            trainer.fabric.log("begun", 1.0)

    def replace_run() -> None:
        logger = CSVLogger(root_dir=run, name="csv", version="", flush_logs_every_n_steps=1)
        loop = tiny_loop(
            run,
            tiny_module(),
            callbacks=[Logs()],
            fabric=Fabric(accelerator="cpu", devices=1, loggers=logger),
            overwrite=True,
        )
        loop.fit()

    replace_run()
    (run / "csv" / "old.csv").write_text("of the run before")
    replace_run()
    with (run / "csv" / "metrics.csv").open(encoding="utf-8") as file:
        assert [row["begun"] for row in csv.DictReader(file)].count("1.0") == 1
    assert not (run / "csv" / "old.csv").exists()


@pytest.mark.parametrize(("variable", "expected"), [(None, None), ("a", "a")], ids=["by hand", "by the comparison"])
def test_a_run_of_a_comparison_that_goes_on_by_hand_is_no_longer_its_run(
    variable: str | None, expected: str | None, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run / "fingerprint.txt"
    path.write_text("a")
    if variable is not None:
        monkeypatch.setenv(FINGERPRINT_VARIABLE, variable)
    tiny_loop(run, tiny_module(), max_iterations=3, resume=True).fit()
    assert (path.read_text() if path.exists() else None) == expected


def test_a_second_loop_in_the_same_process_is_refused_and_the_first_keeps_its_folder(tmp_path: Path) -> None:
    class StartsAnother:
        def on_train_start(self, trainer: Any, module: Any) -> None:
            with pytest.raises(UserError, match="a run is under way"):
                tiny_loop(tmp_path, tiny_module(), overwrite=True).fit()

    loop = tiny_loop(tmp_path, tiny_module(), callbacks=[StartsAnother()])
    loop.fit()
    assert len(loop.folder.read_rows("history.jsonl")) == loop.module.iteration > 0


def test_loops_that_are_only_set_up_may_share_a_folder(tmp_path: Path) -> None:
    loops = [tiny_loop(tmp_path, tiny_module()) for _ in range(2)]
    for loop in loops:
        loop.set_up()


def test_a_folder_that_cannot_be_written_into_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"loop.run_dir: .* cannot be written into \(Is a directory\)"):
        tiny_loop(tmp_path, tiny_module()).fit()
