"""Which run and which model a model comes from, by folders as runs leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ippo_lightning.cli.lineage import Ancestor, adapter_base, base_of, lineage

QWEN = "Qwen/Qwen3-0.6B"


def config(**policy: Any) -> dict[str, Any]:
    return {"model": {"init_args": {"policy": {"class_path": "CausalLMPolicy", "init_args": policy}}}}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three runs: `first` from a model of the Hub, `second` from `first`, and `circle` from itself."""
    folder = tmp_path / "runs"
    starts = {
        "first": config(pretrained=QWEN),
        "second": config(pretrained="other/model", start_from=str(folder / "first")),
        "circle": config(start_from=str(folder / "circle")),
    }
    for name, content in starts.items():
        (folder / name / "model").mkdir(parents=True)
        (folder / name / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def test_the_run_that_a_policy_starts_from_is_named_and_not_what_it_replaces(runs: Path) -> None:
    found = lineage(config(pretrained="other/model", start_from=str(runs / "second")))
    assert found == [Ancestor("run", "runs/second"), Ancestor("run", "runs/first"), Ancestor("model", QWEN)]
    assert base_of(found) == QWEN


@pytest.mark.parametrize("place", ["first/model", "first/model/merged"])
def test_the_model_of_a_run_is_that_of_the_run(place: str, runs: Path) -> None:
    assert lineage(config(pretrained=str(runs / place))) == [Ancestor("run", "runs/first"), Ancestor("model", QWEN)]


def test_a_run_that_is_gone_is_still_named(tmp_path: Path) -> None:
    gone = str(tmp_path / "runs/gone")
    found = lineage(config(pretrained=QWEN, start_from=gone))
    assert found == [Ancestor("run", "runs/gone")]  # its model took the place of what `pretrained` names
    assert base_of(found) == "runs/gone"
    found = lineage(config(pretrained=QWEN, start_from=gone, lora={"r": 8}))
    assert found == [Ancestor("run", "runs/gone"), Ancestor("model", QWEN)]


def test_other_starts() -> None:
    adapted = lineage(config(pretrained=QWEN, lora={"adapter_path": "/data/mine/adapter"}))
    assert adapted == [Ancestor("adapter", "adapter"), Ancestor("model", QWEN)]
    assert lineage(config(pretrained="/x/ippo_lightning/experiments/models/arithmetic_llama")) == [
        Ancestor("model", "arithmetic_llama")
    ]
    assert lineage(config(config={"model_type": "llama"})) == []
    assert base_of([]) is None
    assert lineage({"model": {"init_args": {"policy": {"pretrained": QWEN}}}}) == [Ancestor("model", QWEN)]
    for broken in (None, [], "text", {"model": 3}):
        assert lineage(broken) == []


def test_an_adapter_belongs_to_the_model_below_it(runs: Path) -> None:
    continued = config(pretrained=QWEN, start_from=str(runs / "first"), lora={"r": 8})
    assert adapter_base(continued) == QWEN  # the run has left an adapter on it
    (runs / "first/model/config.json").touch()
    assert adapter_base(continued) == "runs/first/model"
    assert adapter_base(config(config={"model_type": "llama"}, lora={"r": 8})) is None


def test_a_circle_of_runs_ends(runs: Path) -> None:
    assert lineage(config(start_from=str(runs / "circle"))) == [Ancestor("run", "runs/circle")]
    again = config(pretrained=str(runs / "circle/model"))
    (runs / "circle/config.yaml").write_text(yaml.safe_dump(again), encoding="utf-8")
    assert lineage(again) == [Ancestor("run", "runs/circle")]


@pytest.mark.parametrize("name", ["~nobody_of_this_name/sft", "a\0b/sft", "x" * 5000 + "/sft"])
def test_a_folder_that_cannot_be_is_only_named(name: str) -> None:
    assert lineage(config(start_from=name))[0].kind == "run"
    assert lineage(config(pretrained=f"{name}/model"))[0].kind == "model"
    assert adapter_base(config(start_from=name, pretrained=QWEN)) == QWEN


def test_a_tilde_is_the_home(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(runs.parent))
    (runs / "first/model/config.json").touch()
    assert adapter_base(config(pretrained="other/model", start_from="~/runs/first")) == "runs/first/model"
    assert base_of(lineage(config(start_from="~/runs/first"))) == QWEN
    assert base_of(lineage(config(pretrained="~/runs/first/model"))) == QWEN
