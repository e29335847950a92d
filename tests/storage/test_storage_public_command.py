"""A command that others may read names no folder of this machine and no secret, and a shell reads it as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from ippo_lightning.storage.public_command import public_command, public_command_line


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/annleak")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["ippo", "fit", "--task", "arithmetic"], "ippo fit --task arithmetic"),
        (["ippo", "fit", "--config", "my run.yaml"], "ippo fit --config 'my run.yaml'"),
        (["--config", "/home/annleak/x.yaml"], "--config ~/x.yaml"),
        (["--config=/home/annleak/my x.yaml"], "--config ~/'my x.yaml'"),
        (["--x", "~/mymodel"], "--x ~/mymodel"),
        (["--config=/Users/ada/x.yaml"], "--config=x.yaml"),
        (["--config", "/scratch/ann/x.yaml"], "--config x.yaml"),
        (["--config", "/nfs/users/ann/x.yaml"], "--config x.yaml"),
        (["--config", "/export/home/ann/x.yaml"], "--config x.yaml"),
        (["--config", "/mnt/c/Users/ann/x.yaml"], "--config x.yaml"),
        (["--config", r"C:\Users\ann\x.yaml"], "--config x.yaml"),
        (["--data.prompts", "/scratch/ann/rows.jsonl"], "--data.prompts rows.jsonl"),
        (["--d.path", "https://ann:hunter2@host/x.jsonl"], "--d.path https://host/x.jsonl"),
        (["--files", '["/home/ada/a", "/home/bob/b"]'], """--files '["a", "b"]'"""),
        (["--files", "[{api_key: SECRET, n: 3}]"], """--files '[{api_key: "<hidden>", n: 3}]'"""),
        (["--config", "data/home/ada/x.yaml"], "--config data/home/ada/x.yaml"),
        (["--x.api_key=abc", "--x.password", "abc", "--y"], "--x.api_key='<hidden>' --x.password '<hidden>' --y"),
        (["--x.token", "--y", "3"], "--x.token --y 3"),
        (["--x", "", "--y="], "--x '' --y="),
        (["--x.max_new_tokens", "3", "--update.max_tokens=4"], "--x.max_new_tokens 3 --update.max_tokens=4"),
        (["--policy.pad_token", "<pad>"], "--policy.pad_token '<pad>'"),
        (["--policy.system_prompt", "/no_think"], "--policy.system_prompt /no_think"),
        (["--reward.endpoint", "/v1/score"], "--reward.endpoint /v1/score"),
    ],
)  # fmt: skip
def test_what_is_private_is_left_out(words: list[str], shown: str) -> None:
    assert public_command(words) == shown


@pytest.mark.parametrize("name", ["api-key", "passwd", "secret_key", "credentials", "hub_token", "apiKey", "api_keys"])
def test_an_option_of_a_secret_shows_no_value(name: str) -> None:
    assert public_command([f"--x.{name}", "SECRET"]) == f"--x.{name} '<hidden>'"
    assert public_command([f"--x.{name}=SECRET"]) == f"--x.{name}='<hidden>'"


def test_paths_below_the_working_folder_are_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = public_command(["ippo", "report", f"{tmp_path}/runs/a", str(tmp_path), f"--output={tmp_path}/out"])
    assert shown == "ippo report runs/a . --output=out"
    assert public_command([f"{tmp_path}2/a"]) == "a"  # begins with the same letters, and is another folder


def test_a_recorded_command_changes_only_where_it_is_private() -> None:
    plain = """ippo fit --x="two words" --y '~/z' '--z=a b' """
    assert public_command_line(plain) == plain
    assert public_command_line("ippo fit --config /scratch/ann/x.yaml") == "ippo fit --config x.yaml"
    assert public_command_line("ippo fit --x 'cut off /home/annleak/a/b") == "ippo fit --x 'cut off b"
