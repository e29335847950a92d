"""What the curves of training draw: the data, the start as a dotted line, and the same in words."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from ippo_lightning.report.canvas import MUTED, canvas, height_of_labels, label_ends, method_colours
from ippo_lightning.report.curves import CURVES, constant_words, part_curves, plot_curve, starts_of
from ippo_lightning.report.records import Comparison, Method, Run


def comparison(**methods):
    """Build one method per keyword: for each seed, the rows of its history."""
    made = {
        name: Method(
            name, name.upper(), tuple(Run(Path(), name, seed, history=rows, results={}) for seed, rows in seeds)
        )
        for name, seeds in methods.items()
    }
    return Comparison(Path(), MappingProxyType(made))


def rows(key, *values):
    return tuple({"iteration": iteration, key: value} for iteration, value in enumerate(values))


@pytest.fixture
def drawn(monkeypatch):
    """Note what is drawn: `plot` and `axhline` of every panel."""
    found = {"curves": [], "starts": [], "colours": []}
    plot, axhline = Axes.plot, Axes.axhline

    def noted_plot(self, *args, **options):
        if len(args) == 2 and len(args[0]) > 0:
            found["curves"].append((list(args[0]), list(args[1])))
        return plot(self, *args, **options)

    def noted_line(self, y=0, **options):
        found["starts"].append((y, options["linestyle"]))
        found["colours"].append(options["color"])
        return axhline(self, y, **options)

    monkeypatch.setattr(Axes, "plot", noted_plot)
    monkeypatch.setattr(Axes, "axhline", noted_line)
    return found


DOTTED = (0, (1, 2))
ONE_PIXEL = 1 / 150  # inches of a figure, whose height is rounded to whole pixels


def test_a_curve_is_the_mean_over_seeds_and_starts_at_a_dotted_line(drawn, tmp_path):
    key = "rollout/reward_mean"
    shown = comparison(ppo=[(1, rows(key, 0.2, 0.4, 0.9)), (2, rows(key, 0.4, 0.6))])
    words = plot_curve(shown, tmp_path / "reward.png", CURVES["reward"])
    assert drawn["curves"] == [([1, 2, 3], pytest.approx([0.3, 0.5, 0.9]))]  # as the progress of a run counts
    assert drawn["starts"] == [(pytest.approx(0.3), DOTTED)]
    assert words is not None
    assert words.endswith("At the start: PPO 0.300. At the end: PPO 0.900.")


def test_each_part_of_a_reward_has_a_curve(drawn, tmp_path):
    parts = {"rollout/reward/right": 0.5, "rollout/reward/short": -0.1, "rollout/reward/<b>": 1.0}
    history = [{"iteration": i, **{part: value * (1 + i) for part, value in parts.items()}} for i in range(2)]
    shown = comparison(ppo=[(1, history)], ippo=[(1, rows("rollout/reward_mean", 0.2))])
    curves = part_curves(shown)
    assert list(curves) == ["reward_part_right", "reward_part_short"]  # a name that no reward can have is left out
    words = plot_curve(shown, tmp_path / "part.png", curves["reward_part_short"])
    assert words is not None
    assert words.startswith("Reward short of the sampled episodes, by iteration. At the start: PPO ")
    assert words.endswith("0.200.")
    assert part_curves(comparison(ppo=[(1, rows("rollout/reward_mean", 0.2))])) == {}


def test_a_number_that_never_changes_is_printed_and_not_drawn(tmp_path):
    key = "update/clip_fraction"
    same = comparison(ppo=[(1, rows(key, 0.0, 0.0)), (2, rows(key, 0.0))], ippo=[(1, rows(key, 0.5, 0.5))])
    assert plot_curve(same, tmp_path / "1.png", CURVES["clip_fraction"]) is None
    assert constant_words(same) == ["Clip fraction of the update: 0.0 % (PPO), 50.0 % (IPPO)"]
    changes = comparison(ppo=[(1, rows(key, 0.0, 0.0))], ippo=[(1, rows(key, 0.5, 0.6))])
    assert plot_curve(changes, tmp_path / "2.png", CURVES["clip_fraction"]) is not None
    assert constant_words(changes) == []


def test_a_method_with_a_single_value_is_no_dot_among_curves(drawn, tmp_path):
    key = "update/entropy"
    plot_curve(comparison(ppo=[(1, rows(key, 1.0, 0.5))], ippo=[(1, rows(key, 2.0))]), tmp_path / "1.png",
               CURVES["entropy"])  # fmt: skip
    assert drawn["curves"] == [([1, 2], [1.0, 0.5])]


def test_methods_with_one_start_share_a_line_and_others_have_their_own(drawn, tmp_path):
    key = "update/entropy"
    first = comparison(ppo=[(1, rows(key, 1.0, 0.5))], ippo=[(1, rows(key, 1.0, 0.7))])
    plot_curve(first, tmp_path / "1.png", CURVES["entropy"])
    assert drawn["starts"] == [(1.0, DOTTED)]
    assert drawn["colours"] == [MUTED]
    drawn["starts"].clear()
    drawn["colours"].clear()
    second = comparison(ppo=[(1, rows(key, 1.0, 0.5))], ippo=[(1, rows(key, 1.2, 0.7))])
    plot_curve(second, tmp_path / "2.png", CURVES["entropy"])
    assert drawn["starts"] == [(1.0, DOTTED), (1.2, DOTTED)]
    assert drawn["colours"] == list(method_colours(second).values())


def test_validation_curves_start_at_the_evaluation_before_training(drawn, tmp_path):
    run = Run(
        Path(),
        "ppo",
        1,
        results={},
        evaluations=tuple({"iteration": i, "exact_match": v} for i, v in ((0, 0.5), (4, 0.8))),
    )
    shown = replace(comparison(ppo=[]), methods={"ppo": Method("ppo", "PPO", (run,))})
    words = plot_curve(shown, tmp_path / "exact.png", CURVES["exact_match"])
    assert drawn["curves"] == [([0, 4], [0.5, 0.8])]
    assert drawn["starts"] == [(0.5, DOTTED)]
    assert words is not None
    assert "At the start: PPO 50.0 %. At the end: PPO 80.0 %." in words


def test_a_start_is_the_mean_over_the_seeds_that_have_the_first_iteration():
    assert starts_of({"a": [{2: 1.0}, {1: 4.0, 2: 9.0}, {1: 6.0}], "b": [{}, {}]}) == {"a": (1, 5.0)}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("reward", "rollout/reward_mean"), ("kl", "rollout/kl"), ("entropy", "update/entropy"),
        ("response_tokens", "rollout/response_tokens_mean"), ("clip_fraction", "update/clip_fraction"),
        ("gradient_norm", "update/gradient_norm"), ("kept_fraction", "update/kept_fraction"),
        ("iteration_seconds", "time/iteration_seconds"), ("sft_loss", "sft/loss"),
    ],
)  # fmt: skip
def test_each_curve_reads_its_number(name, key):
    run = Run(Path(), "m", 1, history=rows(key, 0.25, 0.5))
    assert CURVES[name].read(run) == {1: 0.25, 2: 0.5}


@pytest.mark.parametrize("values", [(0.0, 1e-300), (-3.0, -1.0), (1e-12, 1e12), (1e300, -1e300)])
@pytest.mark.parametrize("name", ["reward", "gradient_norm", "clip_fraction"])
def test_any_numbers_can_be_drawn(tmp_path, name, values):
    key = {
        "reward": "rollout/reward_mean",
        "gradient_norm": "update/gradient_norm",
        "clip_fraction": "update/clip_fraction",
    }
    shown = comparison(ppo=[(1, rows(key[name], *values))])
    assert plot_curve(shown, tmp_path / "figure.png", CURVES[name]) is not None


def test_a_curve_without_data_is_not_drawn(tmp_path):
    assert plot_curve(comparison(ppo=[(1, ())]), tmp_path / "kl.png", CURVES["kl"]) is None
    assert not (tmp_path / "kl.png").exists()


def test_one_dot_is_no_figure(tmp_path):
    one = comparison(ppo=[(1, rows("rollout/kl", 0.5)), (2, rows("rollout/kl", 0.7))])
    assert plot_curve(one, tmp_path / "kl.png", CURVES["kl"]) is None
    assert not (tmp_path / "kl.png").exists()


@pytest.mark.parametrize("count", [1, 15, 35, 80])
def test_each_name_at_the_end_of_a_curve_is_inside_the_figure_and_covers_no_other(count: int, tmp_path: Path) -> None:
    ends = [(f"grpo+drop_equal+random_{number}", MUTED, 30.0, 0.4 + number / 1000) for number in range(count)]
    with canvas(tmp_path / "figure.png", height=height_of_labels(count)) as panels:
        axes = panels[0][0]
        axes.plot([0, 30], [0, 1])
        label_ends(axes, ends)
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == count
    figure = axes.figure.bbox
    assert all(figure.y0 <= box.y0 and box.y1 <= figure.y1 and box.x1 <= figure.x1 for box in boxes)
    assert all(below.y1 <= above.y0 for below, above in itertools.pairwise(boxes))
    assert (figure.height / axes.figure.dpi > 3.7) == (count > 15), "few names leave the figure as it is"


@pytest.mark.parametrize(("count", "height"), [(2, 3.7), (30, 6.36)])
def test_a_figure_of_many_curves_is_as_high_as_their_names(count: int, height: float, tmp_path: Path) -> None:
    history = {f"method_{number}": [(1, rows("update/entropy", 1.0, 2.0 + number))] for number in range(count)}
    plot_curve(comparison(**history), tmp_path / "entropy.png", CURVES["entropy"])
    assert imread(tmp_path / "entropy.png").shape[0] / 150 == pytest.approx(height, abs=ONE_PIXEL)
