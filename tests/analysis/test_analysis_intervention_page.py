"""What an intervention says: the sentences, the numbers, the page, and the file of finished iterations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ippo_lightning.analysis.intervened_rounds import DoneRounds
from ippo_lightning.analysis.intervention import Intervened
from ippo_lightning.analysis.intervention_figures import has_box, stacked
from ippo_lightning.analysis.intervention_page import write_intervention
from ippo_lightning.analysis.intervention_summary import Outcomes, comparisons, headline, lead, shown, summary_lines
from ippo_lightning.analysis.training_differences import Estimate
from ippo_lightning.storage.checksums import has_wrong_checksum

HOSTILE = "<script>alert(1)</script>"


def outcome(iteration: int, *, effect: float, negatives: int = 30) -> Intervened:
    """The negatives matter by `effect`, and a random drop not at all."""
    generator = np.random.default_rng(iteration)
    episodes = generator.normal(size=20)

    def way(trainings: int, shift: float) -> list[list[float]]:
        noise = 0.1 * generator.normal(size=(trainings, 20)) + 0.1 * generator.normal(size=(trainings, 1))
        return np.asarray(episodes + shift + noise).tolist()

    return Intervened(
        iteration=iteration,
        records=100,
        negatives=negatives,
        scores_of="the return of the iteration's own records (f_return)",
        skipped="",
        steps={"all": 20, "without_negatives": 14, "random_drop": 14},
        returns={
            "before": way(1, -0.5),
            "all": way(3, 0.0),
            "without_negatives": way(3, effect),
            "random_drop": way(5, 0),
        },
    )


def left_out(iteration: int) -> Intervened:
    return Intervened(
        iteration=iteration, records=100, negatives=0, scores_of="the same", skipped="no record has a negative score",
        steps={}, returns={},
    )  # fmt: skip


def outcomes(*found: Intervened, run: str = "seed_1") -> Outcomes:
    return Outcomes(runs={run: found}, unit="test return", noun="episode", settings={"seed": 0})


LONGEST_HEADLINE = 170
"""Characters: three lines at the width of a page."""


@pytest.mark.parametrize(
    ("effect", "words"),
    [(1.0, "raises the test return"), (-1.0, "lowers the test return"), (0.0, "shows no clear change of the test")],
)
def test_the_headline_says_only_what_the_interval_supports(effect: float, words: str) -> None:
    for found in (outcomes(outcome(3, effect=effect)), outcomes(*(outcome(k, effect=effect) for k in range(8)))):
        assert words in headline(found)
        assert "; a random drop: " in headline(found)
        assert len(headline(found)) < LONGEST_HEADLINE


def test_few_iterations_have_no_interval_and_no_finding() -> None:
    found = outcomes(*(outcome(k, effect=1.0) for k in range(4)))
    assert "raises" not in headline(found)
    assert "[" not in headline(found)
    assert any("Fewer than 5 iterations" in sentence for sentence in lead(found))


def test_iterations_are_counted_by_the_sign_against_the_random_drop() -> None:
    found = outcomes(*(outcome(k, effect=1.0 if k < 5 else -1.0) for k in range(8)))
    assert comparisons(found)["negatives_or_random"].signs == (5, 3, 0)
    counts = "better than a random drop of as many records in 5 of them, worse in 3 and equal in 0."
    assert any(counts in sentence for sentence in lead(found))


def test_iterations_that_were_left_out_are_named_and_not_counted() -> None:
    found = outcomes(left_out(0), *(outcome(k, effect=1.0) for k in range(1, 7)))
    assert any("Means over 6 iterations." in sentence for sentence in lead(found))
    assert "seed_1, iteration 0 is left out: no record has a negative score." in lead(found)
    assert "Nothing to compare" in headline(outcomes(left_out(0)))


def test_a_training_that_changed_no_episode_is_told() -> None:
    moved = outcome(1, effect=1.0)
    same = [moved.returns["before"][0]] * 3
    unmoved = replace(moved, iteration=0, returns={**moved.returns, "all": same})
    words = "In 1 of 2 iterations training on all records changed the outcome of no test episode"
    assert any(words in sentence for sentence in lead(outcomes(unmoved, moved)))
    assert not any("changed the outcome" in sentence for sentence in lead(outcomes(moved)))


def unchanged(iteration: int) -> Intervened:
    moved = outcome(iteration, effect=1.0)
    before = moved.returns["before"][0]
    return replace(moved, returns={way: [before] * len(trainings) for way, trainings in moved.returns.items()})


@pytest.mark.parametrize(
    ("iterations", "said"),
    [
        ((3,), "Iteration 3 (counted from 0) changed nothing in the test: with all records, without the 30 negative"),
        ((3, 4), "None of the 2 iterations changed anything in its test: with all records, without the negative ones"),
    ],
)
def test_an_intervention_that_changed_nothing_says_so_and_draws_nothing(
    iterations: tuple[int, ...], said: str, tmp_path: Path
) -> None:
    found = outcomes(*map(unchanged, iterations))
    assert headline(found).startswith(said)
    assert "each of the 20 episodes stayed the same" in headline(found)
    assert summary_lines(found) == [f"{headline(found)}.", lead(found)[0]]
    assert "nothing to compare" in lead(found)[0]
    assert "<figure" not in write_intervention(found, tmp_path).read_text(encoding="utf-8")
    # one training that moved one episode is a change
    moved = unchanged(iterations[-1])
    moved.returns["random_drop"][0] = [1.0, *moved.returns["before"][0][1:]]
    assert "changed nothing" not in headline(outcomes(moved))


def test_a_single_iteration_is_not_counted_as_one_of_one() -> None:
    moved = outcome(1, effect=1.0)
    same = [moved.returns["before"][0]] * 3
    found = lead(outcomes(replace(moved, returns={**moved.returns, "all": same})))
    assert any(sentence.startswith("Training on all records changed the outcome of no test") for sentence in found)


def test_equal_differences_lie_beside_each_other_and_have_no_box() -> None:
    steps = stacked([0.0, 0.0, 0.5, 0.0, 1.0])
    assert len({steps[0], steps[1], steps[3]}) == 3
    assert (steps[2], steps[4]) == (0, 0)
    assert max(stacked([0.0] * 30)) == 1
    assert not has_box([0.0] * 9 + [1.0])
    assert has_box([0.0, 1.0, 2.0, 3.0, 4.0])


def test_the_mean_over_runs_is_over_all_iterations_of_all_runs() -> None:
    pooled = Outcomes(
        runs={"a": [outcome(k, effect=1.0) for k in range(3)], "b": [outcome(k, effect=0.0) for k in range(3, 6)]},
        unit="test return",
        noun="episode",
    )
    found = comparisons(pooled)["without_negatives"]
    of_runs = found.of_runs()
    assert found.estimate.mean == pytest.approx((of_runs["a"] + of_runs["b"]) / 2)
    assert found.estimate.interval is not None


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (Estimate(0.04, 0.01, 1e9), "+0.040 [+0.020, +0.060]"),
        (Estimate(-12.34, 30.0, 1e9), "\N{MINUS SIGN}12 [\N{MINUS SIGN}71, +46]"),
        (Estimate(0.0001, 0.1, 1e9), "±0.00 [\N{MINUS SIGN}0.20, +0.20]"),
        (Estimate(0.25, 0.0, float("nan")), "+0.250"),
    ],
)
def test_a_number_has_the_digits_that_its_interval_supports(estimate: Estimate, expected: str) -> None:
    assert shown(estimate) == expected


def test_the_page_contains_its_figures_and_escapes_names(tmp_path: Path) -> None:
    several = outcomes(left_out(0), *(outcome(k, effect=1.0) for k in range(1, 7)), run=HOSTILE)
    page = write_intervention(several, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert text.count("data:image/png;base64,") == 2 * 2  # each for a phone, too
    assert "http://" not in text
    assert "https://" not in text
    assert sorted(path.stem for path in (tmp_path / "figures").iterdir()) == [
        "boxes", "boxes_narrow", "by_iteration", "by_iteration_narrow",
    ]  # fmt: skip
    numbers = json.loads((tmp_path / "intervention.json").read_text(encoding="utf-8"))
    assert not has_wrong_checksum(numbers)
    assert numbers["headline"] == headline(several)
    assert len(numbers["iterations"]) == 7
    # a page about one iteration has another figure, and leaves none of the earlier ones
    write_intervention(outcomes(outcome(3, effect=1.0)), tmp_path)
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"trainings", "trainings_narrow"}
    assert write_intervention(outcomes(left_out(0)), tmp_path).is_file()
    assert all(len(line) > 0 for line in summary_lines(several) if line)


def test_finished_iterations_are_read_again(tmp_path: Path) -> None:
    done = DoneRounds(tmp_path, {"repeats": 3})
    assert done.read() == {}
    written = [outcome(3, effect=1.0), left_out(4)]
    for one in written:
        done.add("of-a-file", one)
    assert list(done.read().values()) == written
    assert list(done.read()) == [("of-a-file", 3), ("of-a-file", 4)]
    assert DoneRounds(tmp_path, {"repeats": 4}).read() == {}


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[: len(line) // 2],
        lambda line: line.replace('"negatives": 30', '"negatives": 31'),
        lambda line: json.dumps({key: value for key, value in json.loads(line).items() if key != "sha256"}),
        lambda line: "[" * 100_000,
    ],
    ids=["cut off", "changed", "without a checksum", "nested"],
)
def test_a_damaged_line_is_left_out_and_costs_no_other(tmp_path: Path, damage: object) -> None:
    done = DoneRounds(tmp_path, {})
    done.add("a", outcome(3, effect=1.0))
    assert callable(damage)
    done.path.write_text(damage(done.path.read_text(encoding="utf-8").rstrip("\n")), encoding="utf-8")
    done.add("a", outcome(4, effect=1.0))
    assert list(done.read()) == [("a", 4)]
