"""A command that others may read names no user, no folder of a home and no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from ippo_lightning.storage.public_text import public_command


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["ippo", "fit", "--task", "arithmetic"], "ippo fit --task arithmetic"),
        (["ippo", "fit", "--config", "my run.yaml"], "ippo fit --config 'my run.yaml'"),
        (["--config", "/home/ada/x.yaml"], "--config '~/x.yaml'"),
        (["--config=/Users/ada/x.yaml"], "'--config=~/x.yaml'"),
        (["--config", "/root/x.yaml"], "--config '~/x.yaml'"),
        (["--files", '["/home/ada/a", "/home/bob/b"]'], """--files '["~/a", "~/b"]'"""),
        (["--config", "data/home/ada/x.yaml"], "--config data/home/ada/x.yaml"),
        (["--logger.api_key=abc", "--x.password", "abc", "--y"], "--logger.api_key=*** --x.password *** --y"),
        (["--hub.token", "abc"], "--hub.token ***"),
        (["--x.max_new_tokens", "3", "--update.max_tokens=4"], "--x.max_new_tokens 3 --update.max_tokens=4"),
    ],
)  # fmt: skip
def test_what_is_private_is_left_out(words: list[str], shown: str) -> None:
    assert public_command(words) == shown


def test_paths_below_the_working_folder_are_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = public_command(["ippo", "report", f"{tmp_path}/runs/a", str(tmp_path), f"--output={tmp_path}/out"])
    assert shown == "ippo report runs/a . --output=out"
    beside = f"{tmp_path}2/a"  # begins with the same letters, and is another folder
    assert public_command([beside]) == beside
