"""Every example runs as a user would run it."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from ippo_lightning.cli.main import main

WITH_ARGUMENTS = {"train_reward_model"}
"""Run by tests of their own."""
FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = [path for path in sorted(FOLDER.glob("*.py")) if path.stem not in WITH_ARGUMENTS]


SAYS = {
    "noisy_labels": lambda said: numbers(said, "filtered") > numbers(said, "plain") + 5,
    "own_rule": lambda said: 25 <= numbers(said, "kept") < 100,
    "own_loop": lambda said: numbers(said, "iteration 39") > 3 * numbers(said, "iteration 7"),
    "filter_for_stable_baselines3": lambda said: 50 <= numbers(said, "rollout 1: return [0-9]+, kept") < 100,
    "reinforce_gymnasium": lambda said: "filtered: return" in said,
}
"""Example to what must be true of its words, where they promise something."""
MARKS = {
    "noisy_labels": pytest.mark.slow,
    "filter_for_stable_baselines3": pytest.mark.skipif(
        find_spec("stable_baselines3") is None, reason="needs stable-baselines3"
    ),
}


def numbers(said: str, line: str) -> float:
    """The first number after the words that begin a line."""
    found = re.search(rf"^{line}\D*([\d.]+)", said, flags=re.MULTILINE)
    assert found, said
    return float(found[1])


@pytest.mark.parametrize(
    "example",
    [pytest.param(path, marks=MARKS.get(path.stem, ())) for path in EXAMPLES],
    ids=lambda path: path.stem,
)
def test_the_example_runs_and_prints_what_it_promises(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: half of an example's time is the import of torch and transformers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.strip()
    assert SAYS.get(example.stem, bool)(printed), printed


def test_there_is_an_example_for_each_way_in() -> None:
    ways = {"attach_the_callback", "subclass_the_module", "reinforce_gymnasium", "noisy_labels", "own_loop"}
    assert {path.stem for path in EXAMPLES} >= ways


def test_the_foreign_module_imports_nothing_of_ours() -> None:
    source = (EXAMPLES[0].parent / "reinforce_gymnasium.py").read_text(encoding="utf-8")
    assert "ippo_lightning" not in source.split("def main()")[0].split('"""', 2)[2]


def test_the_batch_script_is_sound_and_its_command_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = EXAMPLES[0].parent / "ippo.sbatch"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    text = script.read_text(encoding="utf-8").replace("\\\n", " ")
    words = shlex.split(re.search(r"srun ippo (.*?) \|\|", text)[1])  # type: ignore[index]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["fabric"]["num_nodes"] == 2
