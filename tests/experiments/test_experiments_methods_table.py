"""The guide's table of method files has the rule and the target that each file sets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SHORT = {"influence": "Influence", "random": "Random", "advantage_sign": "AdvantageSign", "reward": "AboveMeanReward"}
GUIDE = (ROOT / "docs/guides/selection.md").read_text(encoding="utf-8")
ROWS = dict(
    re.findall(r"^\| `(\w+)` \| (.+) \|$", GUIDE.partition("| `--method` |")[2].partition("\n\n")[0], re.MULTILINE)
)


def filter_of(path: Path) -> dict[str, Any] | None:
    callbacks = yaml.safe_load(path.read_text(encoding="utf-8")).get("callbacks+", [])
    return next((one.get("init_args", {}) for one in callbacks if one["class_path"] == "InfluenceFilter"), None)


FILTERS = {
    path.stem: found
    for path in sorted((ROOT / "experiments/methods").glob("*.yaml"))
    if (found := filter_of(path)) is not None
}


def test_the_table_has_each_method_file_with_a_filter_and_no_other() -> None:
    assert set(ROWS) == set(FILTERS)
    assert len(FILTERS) > 15


@pytest.mark.parametrize("name", sorted(FILTERS.keys() - {"fast"}))
def test_a_row_has_the_rule_its_numbers_and_the_target_of_the_file(name: str) -> None:
    arguments, row = FILTERS[name], ROWS[name]
    rule = arguments.get("rule", "influence")
    given = {} if isinstance(rule, str) else rule
    shown, target, _ = row.split(" | ")
    assert shown.startswith(f"`{given.get('class_path') or SHORT[rule]}`")
    numbers = {**given.get("init_args", {}), **{k: v for k, v in arguments.items() if k in ("power", "score_at")}}
    for key, value in numbers.items():
        assert f"`{key}: {value}`" in shown or (name, key) == ("length", "fraction")
    chosen = arguments.get("target", {}).get("class_path")
    assert target == (f"`{chosen}`" if chosen else target)
    assert target in ("`Demonstrations`", "none") or chosen
