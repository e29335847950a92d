"""The table and the figure of a comparison of selectors, from numbers that a person can check."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "selection.py"))
RESULTS: dict[str, Any] = {
    "methods": {
        name: {
            "title": name,
            "baseline": baseline,
            "seeds": [1, 2, 3, 4],
            "per_seed": {"exact_match": matches, "unfaithful_fraction": [0.4, 0.3, 0.2, 0.1]},
            "kept_fraction": [1.0, 0.9, 0.5],
            "iteration_seconds": [9.0, 1.0, 2.0],
            "tokens_trained": 2000.0,
        }
        for name, baseline, matches in (("ppo", None, [0.1, 0.5, 0.7, 0.9]), ("ippo", "ppo", [0.6, 0.6, 0.8, 1.0]))
    },
    "equal_compute": {
        "ippo - ppo": {"seconds": {"differences": {"exact_match": {"mean": 0.1, "interval": None, "seeds": [1]}}}}
    },
    "detection": {},
    "versions": {"python": "3.11"},
}


def test_the_numbers_that_are_kept_give_the_same_table_without_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("rliable", reason="the interquartile means are those of rliable, in the extra `bench`")
    file = tmp_path / "kept.json"
    file.write_text(json.dumps(SCRIPT["kept"](RESULTS)), encoding="utf-8")
    again = SCRIPT["read"](file)
    assert "kept_fraction" not in again["methods"]["ppo"]
    assert "versions" not in again
    lines = SCRIPT["table"](again)
    assert lines == SCRIPT["table"](RESULTS)
    # the mean of the middle two of four; 11 of 16 pairs are better
    assert lines[3].startswith("| ippo | 4 | 70.0 [")
    assert "] | 69 % |" in lines[3]


def test_a_figure_shows_what_was_recorded(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    SCRIPT["draw"](RESULTS, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_last_third_and_the_median_are_kept_in_place_of_the_curves() -> None:
    found = SCRIPT["kept"](RESULTS)["methods"]["ppo"]
    assert (found["kept"], found["seconds"]) == (0.5, 2.0)
