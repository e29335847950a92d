"""A hundred wrong inputs: each is one line without control characters and exit code 2, and nothing else happens."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from experiment_files import change, write

from ippo_lightning.cli.main import EXIT_USER_ERROR, main

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 300))
SECONDS = 10.0  # of CPU time, for a text that is built to take hours; a first import of the parser is among them

# name: text of the file, and a word that the line contains
TEXTS: dict[str, tuple[str, str]] = {
    "a billion laughs": (LAUGHS, "values"),
    "aliases that nest": (CHAIN, "nested deeper"),
    "half a million brackets": ("[" * 500_000, "nested deeper"),
    "mappings in mappings": ("{a: " * 200_000, "nested deeper"),
    "lists in lists": ("- " * 200_000, "nested deeper"),
    "keys in keys": ("? " * 200_000, "nested deeper"),
    "two hundred thousand values": ("[" + "1," * 200_000 + "]", "values"),
    "two million characters": ("a: " + "x" * 2_000_000, "characters"),
    "a value inside itself": ("a: &a [*a]", "inside itself"),
    "an alias of nothing": ("a: *b", "undefined alias"),
    "a number of five thousand digits": ("a: " + "1" * 5000, "5,000 characters"),
    "a number of base sixty": ("a: 1" + ":59" * 200_000, "characters"),
    "a quoted number of base sixty": ("a: !!int '1" + ":59" * 200_000 + "'", "characters"),
    "a date that does not exist": ("a: !!timestamp 2024-99-99", "month"),
    "no number": ("a: !!int x", "int()"),
    "no float": ("a: !!float x", "float"),
    "no truth value": ("a: !!bool x", "x"),
    "no base 64": ("a: !!binary a", "base64"),
    "an object of Python": ("a: !!python/object/apply:os.system [true]", "constructor"),
    "a name of Python": ("a: !!python/name:os.system", "constructor"),
    "a module of Python": ("a: !!python/module:antigravity", "constructor"),
    "a list as a key": ("? [a]\n: b", "unhashable"),
    "a mapping as a key": ("? {a: b}\n: c", "unhashable"),
    "a merge of a number": ("a:\n  <<: 5", "merging"),
    "no pairs": ("a: !!pairs 3", "sequence"),
    "no ordered mapping": ("a: !!omap [x]", "mapping"),
    "a tab": ("a:\n\tb: 1", "line 2"),
    "an open quote": ('a: "b', "line 1"),
    "an open bracket": ("a: [1", "line 1"),
    "a closing bracket": ("a: ]", "line 1"),
    "an unknown escape": (r'a: "\y"', "line 1"),
    "two documents": ("a: 1\n---\nb: 2", "document"),
    "an unknown directive": ("%FOO\n---\na: 1", "directive"),
    "a NUL": ("a: \0", "#x0000"),
    "an escape sequence": ("a: \x1b[2J", "#x001b"),
    "a list": ("- a", "no keys and values"),
    "a word": ("loop", "no keys and values"),
    "a number": ("7", "no keys and values"),
    "a set": ("!!set {loop}", "no keys and values"),
    "a key that is a number": ("3: 4", "'3'"),
    "a key that is null": ("null: 4", "'None'"),
    "an escape sequence in a key": ('"\\e]0;owned\\a": 1', "␛]0;owned␇"),
    "a text that runs backwards": ('"\\u202Egnp.exe": 1', "⟨U+202E⟩"),
    "an unknown section": ("trainer: {max_epochs: 3}", "trainer"),
}


def one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command line; return its one line."""
    assert main(words) == EXIT_USER_ERROR
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("ippo:")]
    assert len(lines) == 1, printed.err
    assert "Traceback" not in printed.err
    assert all(sign.isprintable() for sign in lines[0]), lines
    return lines[0]


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_no_experiment_is_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, word = TEXTS[name]
    (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
    start = time.process_time()
    assert word in one_line(["fit", "--config", str(tmp_path / "bad.yaml")], capsys)
    assert time.process_time() - start < SECONDS


ENCODED = {
    "UTF-16": ("seed_everything: 1\n".encode("utf-16"), "UTF-8"),
    "UTF-16 without a mark": ("seed_everything: 1\n".encode("utf-16-le"), "#x0000"),
    "UTF-32": ("seed_everything: 1\n".encode("utf-32"), "UTF-8"),
    "Latin-1": ("größe: 1\n".encode("latin-1"), "byte 2"),
    "half a sign": ("größe: 1\n".encode()[:3], "UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00", "UTF-8"),
    "UTF-8 with an unknown key": ("größe: 1\n".encode(), "größe"),
    "UTF-8 with a mark and an unknown key": ("größe: 1\n".encode("utf-8-sig"), "größe"),
}


@pytest.mark.parametrize("command", ["fit", "compare"])
@pytest.mark.parametrize("name", ENCODED)
def test_a_file_of_another_encoding_is_one_line(
    name: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, word = ENCODED[name]
    (tmp_path / "bad.yaml").write_bytes(content)
    assert word in one_line([command, "--config", str(tmp_path / "bad.yaml")], capsys)


def test_a_file_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    for name in (".", "pipe.yaml", "loop.yaml", "no.yaml", "x" * 300, "/dev/zero", "/dev/null/x.yaml", "\x1b[2J"):
        assert " file" in one_line(["fit", "--config", str(tmp_path / name)], capsys)


def test_a_file_without_an_end_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(50_000_000_000)  # sparse: it takes no room on the disk
    assert "larger" in one_line(["fit", "--config", str(tmp_path / "huge.yaml")], capsys)


WORDS: dict[str, tuple[list[str], str]] = {
    "resume without a folder": (["fit", "--resume"], "no value"),
    "resume of nothing": (["fit", "--resume="], "no value"),
    "resume of a long name": (["fit", "--resume", "x" * 300], "too long"),
    "resume with a task": (["fit", "--resume", "RUN", "--task", "arithmetic"], "task"),
    "trust of a word": (["fit", "--trust=perhaps"], "perhaps"),
    "remote code of a word": (["fit", "--trust_remote_code=perhaps"], "perhaps"),
    "export of nothing": (["export"], "run"),
    "export of a file": (["export", "RUN/config.yaml"], "config.yaml"),
    "export of two": (["export", "RUN", "RUN"], "unrecognized"),
    "export in an unknown form": (["export", "RUN", "--form", "gguf"], "form"),
    "export of an unknown type": (["export", "RUN", "--dtype", "int3"], "dtype"),
    "report of a long name": (["report", "x" * 300], "too long"),
    "report of a name that clears the screen": (["report", "\x1b[2J[bold]"], "␛[2J[bold]"),
    "a command of another case": (["Fit"], "Fit"),
    "a command that clears the screen": (["\x1b[2J"], "␛[2J"),
    "a task that clears the screen": (["fit", "--task", "\x1b[2J"], "␛[2J"),
    "a task outside": (["fit", "--task", "../../../etc/passwd"], "task"),
    "a task of a long name": (["fit", "--task", "x" * 300], "too long"),
    "a base without a name": (["fit", "--base"], "no value"),
    "a key with an escape sequence": (["fit", "--\x1b[2J", "1"], "␛[2J"),
    "a key without a name": (["fit", "--=3"], "model"),
    "a value that is no UTF-8": (["fit", "--task", "arithmetic", "--loop.max_iterations", "\udc80"], "max_iterations"),
    "a split of another case": (["evaluate", "--task", "arithmetic", "--split", "Test"], "split"),
    "compare of nothing": (["compare"], "axes"),
    "compare of an empty text": (["compare", "--config", "{}"], "axes"),
    "compare of text": (["compare", "--config", "{jobs: many, axes: {task: [arithmetic]}}"], "jobs"),
    "compare without a job": (["compare", "--config", "{jobs: 0, axes: {task: [arithmetic]}}"], "jobs"),
    "compare without a seed": (["compare", "--config", "{seeds: [], axes: {task: [arithmetic]}}"], "seeds"),
    "compare with a seed twice": (["compare", "--config", "{seeds: [1, 1], axes: {task: [arithmetic]}}"], "seeds"),
    "compare with a seed below zero": (["compare", "--config", "{seeds: [-1], axes: {task: [arithmetic]}}"], "seeds"),
    "compare with a large seed": (
        ["compare", "--config", f"{{seeds: [{2**32}], axes: {{task: [arithmetic]}}}}"],
        "seeds",
    ),
    "an unknown axis": (["compare", "--config", "{axes: {tsk: [arithmetic]}}"], "tsk"),
    "an axis without names": (["compare", "--config", "{axes: {task: []}}"], "task"),
    "an unknown name": (["compare", "--config", "{axes: {task: [aritmetic]}}"], "aritmetic"),
    "an unknown baseline": (["compare", "--config", "{axes: {task: [arithmetic]}, baseline: x}"], "baseline"),
    "an unknown title": (["compare", "--config", "{axes: {task: [arithmetic]}, titles: {x: y}}"], "titles"),
    "fit of nothing": (["fit"], "for example: ippo fit --task arithmetic --method ippo"),
    "evaluate of nothing": (["evaluate"], "for example: ippo evaluate runs/arithmetic/ippo"),
    "compare without a file": (["compare"], "for example: ippo compare --config grids/demo"),
    **{
        f"{command} of nothing at all": ([command], f"{command}: no run is given; expected .*: ippo {command} runs/")
        for command in ("export", "replay", "report")
    },
    "a report into a folder, of nothing": (["report", "--output", "RUN"], "report: no run is given"),
    **{
        f"{command} of {what}": ([command, path], path)
        for command in ("evaluate", "export", "replay", "report")
        for what, path in {"nowhere": "no/such", "a file": "a_file", "a folder of no run": "empty"}.items()
    },
    "a task without its option": (["fit", "arithmetic"], "fit: 'arithmetic' .*; did you mean --task arithmetic?"),
    "a run without its option": (["fit", "RUN"], "did you mean --resume RUN?"),
    "a file without its option": (["fit", "RUN/config.yaml"], "did you mean --config RUN/config.yaml?"),
    "a word without an option": (["fit", "hello"], "--task NAME"),
    "a file of compare without its option": (["compare", "a_file"], "did you mean --config a_file?"),
    "a folder as a file": (["fit", "--config", "RUN"], "it is a folder with config.yaml"),
    "a folder without a YAML as a file": (["fit", "--config", "empty"], "it is a folder without a YAML"),
    "a folder under another name": (["fit", "--task", "arithmetic", "--dir", "x"], "is loop.run_dir"),
    "a command with a slip": (["exprot", "RUN"], "did you mean 'export'?"),
    "a model by the beginning of its name": (
        ["fit", "--task", "arithmetic", "--model", "qwen"],
        "expected one of qwen3-4b, qwen2.5-3b, qwen3-0.6b, qwen3-1.7b, arithmetic_llama",
    ),
    "a model of the Hub": (
        ["fit", "--task", "arithmetic", "--model", "Qwen/Qwen3-0.6B"],
        "--model.policy.pretrained Qwen/Qwen3-0.6B; did you mean 'qwen3-0.6b'?",
    ),
    "a model in a folder": (["fit", "--task", "arithmetic", "--model", "empty"], "--model.policy.pretrained empty"),
    "a task by the beginning of its name": (["fit", "--task", "gsm"], "did you mean 'gsm8k'? There are gsm8k, acrobot"),
    "a method with a slip": (["fit", "--task", "arithmetic", "--method", "ipo"], "did you mean 'ippo'? There are ippo"),
    "a model with a slip": (
        ["fit", "--task", "arithmetic", "--model.init_args.policy.init_args.pretrained", "arithmetic_lama"],
        "model.policy.pretrained: .* is no folder and no Hub id .*; did you mean --model arithmetic_llama?",
    ),
    "a short form of a key": (["fit", "--task", "arithmetic", "--model.init_args.optimizer.lr=1"], "'learning_rate'?"),
    "a file for a function": (
        ["fit", "--task", "arithmetic", "--model.init_args.reward", "reward_of_words"],
        "reward_of_words is a file; expected a function in it, such as reward_of_words.right",
    ),
    "a number for a function": (
        ["fit", "--task", "arithmetic", "--model.init_args.reward", "reward_of_words.limit"],
        "limit is no function; expected one in reward_of_words.py, such as reward_of_words.right",
    ),
    "a YAML of fit for compare": (["compare", "--config", "mine.yaml"], "mine.yaml is a YAML of `ippo fit`"),
    "a grid for fit": (["fit", "--config", "grids/demo"], "use `ippo compare --config grids/demo`"),
    "a command at the end": (["--config", "mine.yaml", "fit"], "comes first: ippo fit --config mine.yaml"),
    "a method alone": (["fit", "--method", "ippo"], "for example --task arithmetic"),
    "a file with a slip": (["fit", "--config", "mien.yaml"], "did you mean mine.yaml?"),
    "a folder with a slip": (["report", "emtpy"], "folder: 'emtpy' does not exist; did you mean empty?"),
    "an option with a slip": (["evaluate", "RUN", "--sample", "8"], "did you mean '--samples'?"),
    "an unknown base": (["fit", "--task", "arithmetic", "--base", "zzz"], "expected one of control, ppo, sft"),
    "a project of a YAML that fit refuses": (["init", "new", "--task", "arithmetic", "--model", "wrong.yaml"], "'rr'"),
    "a project of a YAML that the parser refuses": (["init", "new", "--model", "wrong_type.yaml"], "num_epochs"),
    **{
        f"a method called {name!r}": (["compare", "--config", json.dumps({"methods": {name: {}}})], "methods")
        for name in ("é", "²", "a b", "../x", "/x", "", ".", "-x", "[bold]", "a\nb", "\x1b[2J", "a//b", "a/")
    },
}


@pytest.mark.parametrize("name", WORDS)
def test_wrong_words_are_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").mkdir()
    (tmp_path / "empty").mkdir()
    for path, text in {"RUN/config.yaml": "{}", "a_file": "hello", **OWN_FILES}.items():
        (tmp_path / path).write_text(text, encoding="utf-8")
    words, said = WORDS[name]
    line = one_line(words, capsys)
    assert said in line or re.search(said, line)
    assert not (tmp_path / "new").exists()


OWN_FILES = {
    "mine.yaml": "model: {class_path: PPOModule}",
    "reward_of_words.py": "limit = 3\ndef right(prompts, responses, examples): ...\n",
    "wrong.yaml": "model: {init_args: {policy: {init_args: {lora: {rr: 3}}}}}",
    "wrong_type.yaml": "model: {init_args: {update: {num_epochs: [1]}}}",
}
POLICY = "model.init_args.policy.init_args"
VALUES: dict[str, tuple[str, Any, str]] = {
    "a section that is a list": ("loop", [1, 2], "loop"),
    "a section that is a number": ("loop", 3, "loop"),
    "a model that is a number": ("model", 3, "model"),
    "a model that is a list": ("model", ["PPOModule"], "model"),
    "callbacks that are a number": ("callbacks", 3, "callbacks"),
    "a class_path that is a list": ("model.class_path", ["PPOModule"], "model"),
    "a class_path that is empty": ("model.class_path", "", "model"),
    "a class_path with blanks": ("model.class_path", "os system", "model"),
    "a class_path of dots": ("model.class_path", "...", "model"),
    "a relative class_path": ("model.class_path", ".PPOModule", "model"),
    "a class_path that is a call": ("model.class_path", "os.system(1)", "model"),
    "a class_path that is a path": ("model.class_path", "../../etc/passwd", "model"),
    "arguments without a class": ("model", {"init_args": {"reward": None}}, "model"),
    "NaN iterations": ("loop.max_iterations", float("nan"), "max_iterations"),
    "half an iteration": ("loop.max_iterations", 1.5, "max_iterations"),
    "a truth value for a number": ("loop.max_iterations", True, "max_iterations"),
    "no rate": ("model.init_args.optimizer.learning_rate", float("nan"), "learning_rate"),
    "an infinite rate": ("model.init_args.optimizer.learning_rate", float("inf"), "learning_rate"),
    "a mapping for a number": ("model.init_args.sampling.max_new_tokens", {"a": 1}, "max_new_tokens"),
    "a list for a truth value": ("loop.progress_bar", [True], "progress_bar"),
    "a folder with a NUL": (f"{POLICY}.pretrained", "a\0b", "a␀b"),
    "a folder that clears the screen": (f"{POLICY}.pretrained", "./\x1b[2J", "␛[2J"),
    "a reward of Python": ("model.init_args.reward", "os.system", "os.system"),
    "a reward in a list": ("model.init_args.reward", ["rewards_for_tests.right"], "reward"),
    "a reward of two arguments": ("model.init_args.reward", "rewards_for_tests.two", "three arguments"),
    "a grader of two arguments": ("model.init_args.grader", "rewards_for_tests.two", "three arguments"),
    "a reward that is no function": ("model.init_args.reward", "rewards_for_tests.calls", "reward"),
    "a reward that is a module": ("model.init_args.reward", "rewards_for_tests", "reward"),
    "a reward that clears the screen": ("model.init_args.reward", "rewards_for_tests.clears", "␛[2J"),
    "a task that is a reward": ("data.init_args.task", {"class_path": "rewards_for_tests.Task"}, "task"),
    "a callback that is a task": ("callbacks.0", {"class_path": "ippo_lightning.tasks.ArithmeticTask"}, "callbacks"),
    "a shell under class_path": (
        "callbacks.0",
        {"class_path": "ippo_lightning.callbacks.EpisodeLog", "dict_kwargs": {"x": {"class_path": "os.system"}}},
        "x",
    ),
}
MORE_REWARDS = """
def two(prompts, responses):
    return [0.0] * len(prompts)

def clears(prompts, responses, examples):
    raise ValueError("\\x1b[2J\\x1b]0;owned\\x07\\u202e")

class Task:
    def rows(self, split):
        return []
"""


@pytest.mark.parametrize("name", VALUES)
def test_a_wrong_value_is_one_line(
    name: str, experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "rewards_for_tests.py").open("a", encoding="utf-8") as file:
        file.write(MORE_REWARDS)
    key, value, said = VALUES[name]
    change(experiment, key, value)
    assert said in one_line(["fit", "--config", write(experiment, tmp_path)], capsys)


MODELS: dict[str, dict[str, Any]] = {
    "minus one layer": {"num_hidden_layers": -1},
    "no heads": {"num_attention_heads": 0},
    "heads that do not divide": {"num_attention_heads": 3},
    "minus two heads": {"num_attention_heads": -2},
    "no width": {"hidden_size": 0},
    "minus eight": {"hidden_size": -8},
    "half a width": {"hidden_size": 8.5},
    "a word for a width": {"hidden_size": "wide"},
    "no vocabulary": {"vocab_size": 0},
    "minus one token": {"vocab_size": -1},
    "an unknown activation": {"hidden_act": "\x1b[2J"},
    "an odd head": {"head_dim": 3},
    "an unknown type": {"model_type": "\x1b[2Jllama"},
    "no type": {"model_type": None},
    "a number as the type": {"model_type": 7},
    "a type without a language model": {"model_type": "vit"},
    "more keys than heads": {"num_key_value_heads": 4},
    "no context": {"max_position_embeddings": 0},
    "minus one token of context": {"max_position_embeddings": -1},
    "an unknown position table": {"rope_scaling": {"rope_type": "x", "factor": 2.0}},
}


@pytest.mark.parametrize("checks", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["checked", "unchecked"])
@pytest.mark.parametrize("name", MODELS)
def test_an_impossible_model_is_one_line(
    name: str, checks: bool, experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiment_files import TINY

    policy = {"config": {**TINY, **MODELS[name]}, "tokenizer": {"class_path": "arithmetic_tokenizer"}}
    change(experiment, POLICY, {**policy, "self_check": checks})
    assert one_line(["fit", "--config", write(experiment, tmp_path)], capsys).count("error: ") == 1
