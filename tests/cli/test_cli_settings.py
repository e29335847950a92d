"""Settings of `ippo compare`: what is wrong with them is one line, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from experiment_files import write

from ippo_lightning.cli.main import EXIT_USER_ERROR, main

COMPARISONS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no methods": (lambda settings: settings.update(methods={}), "methods"),
    "no seeds": (lambda settings: settings.update(seeds=[]), "seeds"),
    "a seed twice": (lambda settings: settings.update(seeds=[1, 1]), "seeds"),
    "no jobs": (lambda settings: settings.update(jobs=0), "jobs"),
    "a method without its file": (
        lambda settings: settings["methods"]["ppo"].update(config=["/no/such.yaml"]),
        "/no/such.yaml",
    ),
    **{
        f"{name}: null": (lambda settings, name=name: settings.update({name: None}), f"{name}: null is no value for it")
        for name in ("run_dir", "axes", "methods", "titles", "seeds", "overrides", "jobs", "overwrite")
    },
    **{
        f"{name} of a method: null": (
            lambda settings, name=name: settings["methods"]["ppo"].update({name: None}),
            f"methods.ppo.{name}: null is no value for it; leave {name} out for its default",
        )
        for name in ("config", "overrides", "command", "title")
    },
    "an unknown key": (lambda settings: settings.update(bogus=1), "bogus"),
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_an_error_in_a_comparison_is_one_line(
    name: str, experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {
        "run_dir": str(tmp_path / "compare"),
        "seeds": [1],
        "methods": {"ppo": {"config": [write(experiment, tmp_path)]}},
    }
    spoil, word = COMPARISONS[name]
    spoil(settings)
    (tmp_path / "compare.yaml").write_text(json.dumps(settings), encoding="utf-8")
    assert main(["compare", "--config", str(tmp_path / "compare.yaml")]) == EXIT_USER_ERROR
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ippo:")]
    assert word in line
