"""The numbers beside the progress bar."""

from __future__ import annotations

import math
import sys

import pytest

from ippo_lightning.run.progress import ProgressBar, _duration, summary_line


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"rollout/reward_mean": 0.5, "update/kept_fraction": 0.25}, "reward 0.50 kept 25%"),
        ({"rollout/reward_mean": 0.5, "update/kept_fraction": 1.0}, "reward 0.50"),
        ({"update/kept_fraction": 1.0, "influence/max_weight": 1.0}, "kept 100%"),
        ({"update/kept_fraction": 1.0, "influence/scored_kept_fraction": 0.4}, "kept 40%"),
        ({"exact_match": 0.0, "unfaithful_fraction": math.nan}, "EM 0.00"),
        ({"something/else": 1.0}, ""),
        # the reward and the KL of a step in an environment are constants
        ({"rollout/reward_mean": 1.0, "rollout/kl": 0.0, "rollout/episode_return": 187.25}, "return 187.2"),
    ],
    ids=["known", "no filter", "filter", "filter by layer", "nan", "unknown", "environment"],
)
def test_the_bar_shows_the_numbers_that_exist(numbers: dict[str, float], expected: str) -> None:
    assert summary_line(numbers) == expected


def test_an_older_evaluation_states_when_it_was() -> None:
    bar = ProgressBar(enabled=False, total=8, title="run")
    shown = []
    for completed, numbers in ((2, EVALUATION), (3, ITERATION), (4, ITERATION), (4, EVALUATION)):
        bar.update(completed=completed, numbers=numbers, is_evaluation=numbers is EVALUATION)
        shown.append(bar.progress.tasks[0].fields["numbers"])
    assert shown[0] == "EM 0.50 unf 0.10"
    assert shown[1:3] == ["reward 0.50 kept 25% EM@2 0.50"] * 2
    assert shown[3] == "reward 0.50 kept 25% EM 0.50 unf 0.10"
    longest = {"rollout/reward_mean": -0.5, "update/kept_fraction": 1.0, "influence/max_weight": 1.0, **EVALUATION}
    assert len(summary_line(longest, evaluated_at=1200)) <= 36


EVALUATION = {"exact_match": 0.5, "unfaithful_fraction": 0.1}


def lines_of(bar: ProgressBar, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a run of two iterations, resumed after the first of four, writes to standard error."""
    capsys.readouterr()
    bar.update(completed=1, numbers={})
    bar.update(completed=2, numbers=ITERATION)
    evaluated = {"exact_match": 0.5, "unfaithful_fraction": math.nan, "label/faithful": 0.25}
    bar.update(completed=2, numbers=evaluated, is_evaluation=True)
    bar.update(completed=4, numbers={"sft/loss": 0.12345, "time/iteration_seconds": 0.04})
    output = capsys.readouterr()
    assert not output.out
    return output.err.splitlines()


ITERATION = {"rollout/reward_mean": 0.5, "rollout/kl": 0.0123, "update/kept_fraction": 0.25, "other/x": 1.0}
ITERATION |= {"time/iteration_seconds": 3.21}


def test_without_a_terminal_each_iteration_and_evaluation_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 60.0, 60.0])
    monkeypatch.setattr("ippo_lightning.run.progress.time.monotonic", lambda: next(times))
    monkeypatch.setenv("COLUMNS", "40")  # a line stays one, however narrow the log is
    with ProgressBar(enabled=True, total=4, title="run") as bar:
        assert lines_of(bar, capsys) == [
            "iteration 2/4: reward 0.500, KL 0.012, kept 25%, 3.2 s, 2 min 0 s left",
            "evaluation 2/4: exact_match 0.500",
            "iteration 4/4: loss 0.1235, 0.0 s",
        ]


def test_other_ranks_and_runs_without_a_bar_write_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(enabled=False, total=4, title="run") as bar:
        assert lines_of(bar, capsys) == []


def test_a_terminal_gets_the_bar_and_no_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    with ProgressBar(enabled=True, total=4, title="run") as bar:
        assert not [line for line in lines_of(bar, capsys) if line.startswith("iteration")]
        assert "reward 0.50 kept 25%" in bar.progress.tasks[0].fields["numbers"]


def test_a_long_path_that_is_printed_beside_the_bar_stays_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    path = "/scratch/" + "a_folder/" * 16
    with ProgressBar(enabled=True, total=4, title="run") as bar:
        bar.say(f"Checkpoint: {path}")
        print(f"warning: {path} is full", file=sys.stderr)
        print(f"reward: wrote {path}")
    printed = capsys.readouterr().err
    assert len(path) > 150
    assert printed.count(path) == 3


@pytest.mark.parametrize(("seconds", "text"), [(59.4, "59 s"), (60, "1 min 0 s"), (3661, "1 h 1 min"), (0, "0 s")])
def test_a_duration_is_written_in_two_units_at_most(seconds: float, text: str) -> None:
    assert _duration(seconds) == text
