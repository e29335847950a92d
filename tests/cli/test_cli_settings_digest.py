"""The digest of settings is that of their content, in every process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from jsonargparse import Namespace

from ippo_lightning.cli.settings_digest import digest_of

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from jsonargparse import Namespace
from my_reward import Reward, right
from ippo_lightning.cli.settings_digest import digest_of
print(digest_of([Namespace(reward=right, path="a", names={"b", "c", "d"}), {"grader": Reward()}, (Reward, 0.5)]))
"""
REWARD = "def right(prompts):\n    return [1.0]\n\n\nclass Reward:\n    pass\n"


def in_a_process(folder: Path, seed: str) -> str:
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def test_two_processes_agree_until_the_source_of_a_function_changes(tmp_path: Path) -> None:
    (tmp_path / "my_reward.py").write_text(REWARD, encoding="utf-8")
    first = in_a_process(tmp_path, "1")
    assert in_a_process(tmp_path, "2") == first
    (tmp_path / "my_reward.py").write_text(REWARD.replace("1.0", "2.0"), encoding="utf-8")
    assert in_a_process(tmp_path, "1") != first


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, "1"), (None, "None"), ([1, 2], [2, 1]), (Namespace(a=1), Namespace(a=2)), ({"a": 1}, {"b": 1})],
)
def test_other_settings_have_another_digest(one: object, other: object) -> None:
    assert digest_of(one) != digest_of(other)
    assert digest_of(one) == digest_of(one)
