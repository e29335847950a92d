"""Checkpoints: the newest whole one is found, the right ones are kept, and those of something else are refused."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_parts import TINY, same, tiny_loop, tiny_module, tiny_policy, trainable

from ippo_lightning.data import arithmetic_tokenizer
from ippo_lightning.engine import random_states, restore_random_states
from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, LoraSettings
from ippo_lightning.run.checkpoint_folder import CheckpointFolder
from ippo_lightning.run.checkpoints import frozen_fingerprint, read_checkpoint, write_checkpoint
from ippo_lightning.storage.atomic import write_text_whole, write_whole
from ippo_lightning.storage.run_folder import RunFolder


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_the_last_few_and_the_best_are_kept(tmp_path: Path) -> None:
    loop = tiny_loop(
        tmp_path / "run",
        tiny_module(),
        max_iterations=4,
        evaluate_every_n_iterations=1,
        best_metric="label/wrong_answer",
        best_mode="min",
        keep_last_checkpoints=2,
    )
    loop.fit()
    assert checkpoints(tmp_path / "run") == [
        "best.ckpt",
        "iteration_0000003.ckpt",
        "iteration_0000004.ckpt",
        "last.ckpt",
    ]
    best = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert best["best"]["iteration"] == best["progress"]["iteration"] == loop.best["iteration"]


def test_a_metric_that_is_not_measured_is_refused(tmp_path: Path) -> None:
    loop = tiny_loop(tmp_path / "run", tiny_module(), evaluate_every_n_iterations=1, best_metric="accuracy")
    with pytest.raises(UserError, match="best_metric: accuracy is not a metric; expected one of exact_match"):
        loop.fit()


@pytest.mark.parametrize("num_bytes", [0, 100, -50], ids=["empty", "cut early", "cut late"])
def test_a_checkpoint_that_was_cut_is_skipped(num_bytes: int, tmp_path: Path) -> None:
    whole, broken, resumed = tiny_module(), tiny_module(), tiny_module()
    tiny_loop(tmp_path / "whole", whole, max_iterations=4).fit()
    tiny_loop(tmp_path / "run", broken, max_iterations=3, keep_last_checkpoints=2).fit()
    newest = tmp_path / "run" / "checkpoints" / "iteration_0000003.ckpt"
    content = newest.read_bytes()
    newest.unlink()  # last.ckpt is a second name of the same file
    newest.write_bytes(content[: num_bytes if num_bytes >= 0 else len(content) + num_bytes])
    with pytest.warns(UserWarning, match="cannot be read .*; an older one is used"):
        tiny_loop(tmp_path / "run", resumed, max_iterations=4, resume=True).fit()
    assert same(trainable(whole), trainable(resumed))


def test_where_no_checkpoint_is_whole_that_is_said(tmp_path: Path) -> None:
    tiny_loop(tmp_path / "run", tiny_module()).fit()
    (tmp_path / "run" / "checkpoints" / "iteration_0000002.ckpt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"iteration_0000002.ckpt cannot be read"):
        tiny_loop(tmp_path / "run", tiny_module(), max_iterations=3, resume=True).fit()


def resumed_with(tmp_path: Path, module: Any) -> None:
    tiny_loop(tmp_path / "run", module, max_iterations=3, resume=True).fit()


def changed_state(tmp_path: Path, **changes: Any) -> None:
    path = tmp_path / "run" / "checkpoints" / "iteration_0000002.ckpt"
    state: Any = {**torch.load(path, weights_only=True), **changes}
    path.unlink()  # last.ckpt is a second name of the same file
    (path.parent / "last.ckpt").unlink()
    write_checkpoint(state, path)


def test_a_checkpoint_of_another_version_says_so(tmp_path: Path) -> None:
    tiny_loop(tmp_path / "run", tiny_module()).fit()
    changed_state(tmp_path, format=99, version="9.9.9")
    with pytest.raises(UserError, match=r"written by ippo-lightning 9\.9\.9 in format 99, and .* reads format \d+"):
        resumed_with(tmp_path, tiny_module())


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"config": {**TINY, "hidden_size": 32}, "reference": "none"}, "of another model; the first parameter"),
        ({"lora": LoraSettings(r=2), "reference": "none"}, "of another model"),
        ({}, "has reference none, this run has copy"),
    ],
    ids=["width", "adapter", "reference"],
)
def test_a_checkpoint_of_another_model_says_so(policy: dict[str, Any], words: str, tmp_path: Path) -> None:
    tiny_loop(tmp_path / "run", tiny_module(policy=tiny_policy(reference="none"))).fit()
    with pytest.raises(UserError, match=words):
        resumed_with(tmp_path, tiny_module(policy=tiny_policy(**policy)))


def test_an_adapter_is_not_put_on_another_base(tmp_path: Path) -> None:
    tiny_loop(tmp_path / "run", tiny_module(policy=tiny_policy(lora=LoraSettings(r=2), seed=3))).fit()
    with pytest.raises(UserError, match="its frozen parameters are not those of this one"):
        resumed_with(tmp_path, tiny_module(policy=tiny_policy(lora=LoraSettings(r=2), seed=4)))


def test_the_fingerprint_is_the_same_for_the_same_four_bit_weights(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    tiny_policy(config={**TINY, "hidden_size": 64}, value="none", reference="none").save_pretrained(folder)
    settings: dict[str, Any] = {"pretrained": str(folder), "lora": LoraSettings(r=2), "quantization": "nf4"}
    first, second = (CausalLMPolicy(**settings, tokenizer=arithmetic_tokenizer()) for _ in range(2))
    assert frozen_fingerprint(first) == frozen_fingerprint(second)


def test_every_random_stream_goes_on_where_it_was() -> None:
    states = random_states()
    drawn = random.random(), float(np.random.rand()), float(torch.rand(()))
    restore_random_states(states, source="here")
    assert drawn == (random.random(), float(np.random.rand()), float(torch.rand(())))


def test_random_streams_can_be_read_without_running_code(tmp_path: Path) -> None:
    torch.save(random_states(), tmp_path / "streams")
    restore_random_states(torch.load(tmp_path / "streams", weights_only=True), source="here")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text_whole(path, "old")

    class FullError(RuntimeError): ...

    def fails(file: Any) -> None:
        file.write(b"half of the n")
        raise FullError

    with pytest.raises(FullError):
        write_whole(path, fails)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_folder_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has none"):
        CheckpointFolder(tmp_path).read_newest()


def test_a_folder_that_holds_no_run_keeps_what_is_in_it(tmp_path: Path) -> None:
    for name in ("model", "csv", "checkpoints"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    RunFolder(tmp_path).begin(resume=False, overwrite=True)
    RunFolder(tmp_path).release()
    assert all((tmp_path / name / "mine").exists() for name in ("model", "csv", "checkpoints"))


def test_two_processes_cannot_write_the_same_run(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from ippo_lightning.storage.run_folder import RunFolder\n"
        "folder = RunFolder(Path(sys.argv[1])); folder.begin(resume=False, overwrite=False)\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(UserError, match="a run is under way"):
            RunFolder(tmp_path).begin(resume=False, overwrite=False)
        other.communicate()  # closes its input, by which it ends
    RunFolder(tmp_path).begin(resume=False, overwrite=False)
    RunFolder(tmp_path).release()


def test_an_object_with_hooks_and_without_a_base_class_is_a_callback(tmp_path: Path) -> None:
    class Counter:
        seen = 0

        def on_rollout_end(self, trainer: Any, pl_module: Any, plan: Any) -> None:
            self.seen += 1

    first, second = Counter(), Counter()
    tiny_loop(tmp_path / "run", tiny_module(), callbacks=[first], max_iterations=1).fit()
    tiny_loop(tmp_path / "run", tiny_module(), callbacks=[second], max_iterations=2, resume=True).fit()
    assert (first.seen, second.seen) == (1, 1)
