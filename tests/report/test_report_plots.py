from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib.image
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from ippo_lightning import report
from ippo_lightning.report.canvas import PART_COLOURS, method_colours, spread, wrapped
from ippo_lightning.report.histogram import _edges
from ippo_lightning.report.records import Comparison, Method
from ippo_lightning.report.summary import bootstrap_bounds, bootstrap_interval

CURVES = ("reward", "exact_match", "unfaithful_fraction", "kept_fraction", "iteration_seconds", "effective_sample_size")
PLOTS = {
    **{name: partial(report.plot_curve, curve=report.CURVES[name]) for name in CURVES},
    "results": report.plot_results,
    "time_parts": report.plot_time_parts,
    "score_histogram": report.plot_score_histogram,
    "score_quantiles": report.plot_score_quantiles,
}


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory, folder_maker):
    return report.read_comparison(
        folder_maker(tmp_path_factory.mktemp("plots") / "c").comparison(seeds=3, iterations=9)
    )


@pytest.mark.parametrize("name", PLOTS)
def test_each_figure_is_a_picture_with_something_in_it(three_seeds, tmp_path, name):
    path = tmp_path / "figures" / f"{name}.png"
    words = PLOTS[name](three_seeds, path)
    pixels = matplotlib.image.imread(path)[..., :3]
    assert pixels.shape[1] == 960  # 6.4 inches at 150 dpi
    assert 0.005 < (pixels < 0.95).any(axis=-1).mean() < 0.5
    assert "I-PPO" in words


@pytest.mark.parametrize("name", PLOTS)
def test_a_figure_without_data_is_not_drawn(folders, tmp_path, name):
    folders.list_methods({"ppo": {"title": "PPO", "seeds": [1]}})
    path = tmp_path / f"{name}.png"
    assert PLOTS[name](report.read_comparison(folders.root), path) is None
    assert not path.exists()


@pytest.mark.parametrize("name", PLOTS)
def test_a_single_short_run_can_be_drawn(folders, tmp_path, name):
    comparison = report.read_comparison(folders.comparison(seeds=1, iterations=1, episodes=3, methods=("ippo",)))
    PLOTS[name](comparison, tmp_path / "figure.png")


def test_the_alternative_text_says_where_the_curves_end(three_seeds, tmp_path):
    words = PLOTS["kept_fraction"](three_seeds, tmp_path / "kept.png")
    # 0.53 - 0.15 * 8 / 9 at the last of nine iterations
    assert "PPO 100.0 %, Random half 50.0 %, I-PPO 39.7 %" in words


def test_the_band_of_a_curve_is_the_bootstrap_interval_of_its_mean():
    values = [0.2, 0.5, 0.9, 0.4, 0.6]
    low, high = bootstrap_bounds(values)
    exact = bootstrap_interval(values)
    assert exact is not None
    assert abs(low - exact[0]) < 0.02  # another set of resamples
    assert abs(high - exact[1]) < 0.02
    assert min(values) < low < high < max(values)


def test_drawing_again_gives_the_same_file(three_seeds, tmp_path):
    first, second = tmp_path / "1.png", tmp_path / "2.png"
    report.plot_results(three_seeds, first)
    report.plot_results(three_seeds, second)
    assert first.read_bytes() == second.read_bytes()


def test_methods_have_different_colours(three_seeds):
    assert len(set(method_colours(three_seeds).values())) == len(three_seeds.methods)


def test_colours_follow_roles_and_not_names(three_seeds):
    usual = {"sft": "#767676", "ppo": "#0072B2", "random": "#009E73", "ippo": "#D55E00"}
    assert method_colours(three_seeds) == usual
    swapped = report.with_roles(three_seeds, baseline="random", featured="ppo")
    assert method_colours(swapped) == {"sft": "#767676", "ppo": "#D55E00", "random": "#0072B2", "ippo": "#009E73"}
    without = report.with_roles(three_seeds, baseline="sft")
    assert method_colours(without)["sft"] == "#0072B2"


def test_a_second_baseline_and_a_second_featured_method_stay_apart_from_the_first(three_seeds):
    methods = dict(three_seeds.methods)
    methods |= {f"other {name}": replace(methods[name], name=f"other {name}") for name in ("ppo", "ippo")}
    methods["other ippo"] = replace(methods["other ippo"], baseline="other ppo")
    colours = method_colours(replace(three_seeds, methods=methods))
    assert len(set(colours.values())) == 6
    assert (colours["ppo"], colours["ippo"]) == ("#0072B2", "#D55E00")


def test_labels_are_moved_apart_in_order_and_within_the_limits():
    moved = spread([0.5, 0.5, 0.98, 0.97], gap=0.1, low=0.0, high=1.0)
    ordered = sorted(moved)
    assert all(upper - lower >= 0.1 - 1e-12 for lower, upper in itertools.pairwise(ordered))
    assert max(moved) <= 1.0
    assert moved[2] > moved[3] > moved[0]
    assert spread([0.2, 0.8], gap=0.1, low=0.0, high=1.0) == [0.2, 0.8]


def noted(monkeypatch, name):
    """Note the first argument and the colour of every call of a method of `Axes`."""
    found, original = [], getattr(Axes, name)

    def note(self, first, *args, **options):
        found.append((first, options.get("color")))
        return original(self, first, *args, **options)

    monkeypatch.setattr(Axes, name, note)
    return found


def test_results_show_where_the_others_started(three_seeds, tmp_path, monkeypatch):
    lines = noted(monkeypatch, "axvline")
    report.plot_results(three_seeds, tmp_path / "results.png")
    start = three_seeds.methods["sft"].runs[0]
    assert [at for at, _ in lines] == [start.result("exact_match"), start.result("unfaithful_fraction")]


def test_a_single_run_has_a_bar_over_its_prompts(folders, tmp_path, monkeypatch):
    folder = folders.run("ppo", 1, iterations=1)
    (folder / "results.json").write_text(json.dumps({"exact_match": 0.75}))
    counts = {"samples": [2, 2], "correct": [2, 1], "judged": [2, 1], "unfaithful": [0, 1], "majority_vote": [1, 0]}
    (folder / "test_prompts.json").write_text(json.dumps({"k": 1, **counts}))
    drawn = noted(monkeypatch, "plot")
    report.plot_results(report.gather_runs([folder], root=tmp_path), tmp_path / "results.png")
    assert drawn[0][0] == pytest.approx([0.3424, 1.0], abs=1e-4)  # the lower end as if both were all right


def test_the_time_of_a_stage_is_a_median(folders, tmp_path):
    folder = folders.run("ppo", 1, iterations=1)
    seconds = ((1.0, 3.0), (1.0, 3.0), (50.0, 90.0))  # the machine was busy once
    rows = [
        {"iteration": i, "time/rollout_seconds": a, "time/iteration_seconds": b} for i, (a, b) in enumerate(seconds)
    ]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = report.plot_time_parts(report.gather_runs([folder], root=tmp_path), tmp_path / "time.png")
    # The rollout takes 1 second, the rest 2.
    assert words == "Median seconds of an iteration, split into rollout, rest: ppo 3 s."


@pytest.mark.parametrize(("factor", "scale"), [(1.0, "linear"), (1000.0, "symlog")])
def test_scores_of_different_scale_make_the_axis_logarithmic(folders, tmp_path, monkeypatch, factor, scale):
    folder = folders.run("ippo", 1, iterations=1)
    rows = [
        {"iteration": i, **{f"influence/score_{name}": place * size for name, place in zip(NAMES, PLACES, strict=True)}}
        for i, size in enumerate((1.0, factor))
    ]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made, labels = noted(monkeypatch, "set_yscale"), noted(monkeypatch, "set_ylabel")
    report.plot_score_quantiles(report.gather_runs([folder], root=tmp_path), tmp_path / "scores.png")
    assert [name for name, _ in made] == ([] if scale == "linear" else ["symlog"])
    assert [name for name, _ in labels] == [
        "influence score" if scale == "linear" else "influence score (logarithmic axis)"
    ]


NAMES, PLACES = ("q10", "q25", "median", "q75", "q90"), (-1.0, -0.2, 0.1, 0.5, 2.0)


def test_a_method_has_one_colour_in_all_figures(three_seeds, tmp_path, monkeypatch):
    mine = method_colours(three_seeds)["ippo"]
    others = {colour for name, colour in method_colours(three_seeds).items() if name != "ippo"}
    alone = replace(three_seeds, methods={**three_seeds.methods})
    for name, call in (("score_quantiles", "fill_between"), ("score_histogram", "hist"), ("kept_fraction", "plot")):
        drawn = noted(monkeypatch, call)
        PLOTS[name](alone, tmp_path / f"{name}.png")
        colours = {to_hex(one, keep_alpha=False).upper() for _, given in drawn for one in as_list(given) if one}
        assert mine in colours
        # Scores are those of the one method that has some.
        assert name == "kept_fraction" or not colours & {other.upper() for other in others}


def as_list(given):
    return given if isinstance(given, list) else [given]


def test_stages_of_an_iteration_are_not_taken_for_methods():
    many = {str(i): Method(str(i), str(i), ()) for i in range(12)}
    colours = list(method_colours(Comparison(Path(), many)).values())
    assert len(set(colours)) == 12
    assert not set(colours) & set(PART_COLOURS)


def test_a_result_without_any_number_has_no_panel(folders, tmp_path, monkeypatch):
    folder = folders.run("ppo", 1, iterations=1)
    (folder / "results.json").write_text(json.dumps({"exact_match": 0.75, "unfaithful_fraction": None}))
    titles = noted(monkeypatch, "set_title")
    words = report.plot_results(report.gather_runs([folder], root=tmp_path), tmp_path / "results.png")
    assert [title for title, _ in titles] == ["Exact match"]
    assert words == "Final results of each method, with seeds and intervals. ppo: exact match 75.0 %."
    (folder / "results.json").write_text("{}")
    assert report.plot_results(report.gather_runs([folder], root=tmp_path), tmp_path / "results.png") is None


def test_both_parts_of_a_histogram_have_room_for_the_higher_bars(folders, tmp_path, monkeypatch):
    folder = folders.run("ippo", 1, iterations=1)
    early = [{"iteration": 0, "score": float(i), "weight": 1.0} for i in range(-20, 21)]
    late = [{"iteration": 1, "score": 5.0, "weight": 1.0} for _ in range(41)]  # one bar of 100 %
    (folder / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in early + late))
    panels = []
    original = Axes.sharey
    monkeypatch.setattr(Axes, "sharey", lambda self, other: (original(self, other), panels.append(self)))
    report.plot_score_histogram(report.gather_runs([folder], root=tmp_path), tmp_path / "scores.png")
    assert panels[0].get_ylim()[1] >= 1


def test_a_long_title_is_broken_between_words_and_keeps_its_end():
    assert wrapped("word_problems/smollm2-135m/ippo", width=30) == "word_problems/smollm2-135m/\nippo"
    first, second = (wrapped(f"word_problems/smollm2-135m+lora/{name}", width=15) for name in ("ippo", "ippo_fast"))
    assert first != second
    for shown in (first, second, wrapped("x" * 100, width=15), wrapped("a very long name of one method", width=15)):
        assert len(shown.splitlines()) <= 2
        assert max(map(len, shown.splitlines())) <= 15
        assert "…" in shown


def test_a_short_curve_has_whole_iterations_and_labels_of_its_own_size(tmp_path, monkeypatch, folders):
    folder = folders.run("ppo", 1, iterations=1)
    rows = [{"iteration": i, "rollout/reward_mean": i / 100} for i in (40, 41)]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    panels = []
    original = Axes.set_title
    monkeypatch.setattr(Axes, "set_title", lambda self, *a, **b: (panels.append(self), original(self, *a, **b))[1])
    report.plot_curve(report.gather_runs([folder], root=tmp_path), tmp_path / "c.png", report.CURVES["reward"])
    assert {label.get_text() for label in panels[0].get_xticklabels()} >= {"41", "42"}
    assert panels[0].yaxis.get_offset_text().get_text() == ""
    low, high = panels[0].get_ylim()
    assert sum(low <= tick <= high for tick in panels[0].get_yticks()) >= 3


def test_the_stages_add_up_to_the_median_of_the_tables(tmp_path, folders):
    folder = folders.run("ppo", 1, iterations=1)
    # The stages are slow in different iterations, so their medians add up to 3 of 4, or in the second run to 6 of 5.
    for stages, whole in (((1, 2), 4.0), ((3, 3), 5.0)):
        rollout, update = stages
        rows = [
            {"iteration": i, "time/rollout_seconds": rollout, "time/update_seconds": update,
             "time/iteration_seconds": seconds, "update/kept_fraction": 1.0}
            for i, seconds in enumerate((whole, whole, 90.0))
        ]  # fmt: skip
        (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = report.plot_time_parts(report.gather_runs([folder], root=tmp_path), tmp_path / "time.png")
        assert words.endswith(f"ppo {whole:.0f} s.")


@pytest.mark.parametrize("scores", [[0.0], [1.0, 2.0], [-1e-9, -1e-12], [-1.0, 1e6, 3.0]])
def test_one_edge_of_the_histogram_is_zero(scores):
    edges = _edges(scores)
    assert 0.0 in edges
    assert 2 <= len(edges) <= 45
    assert (edges[1:] > edges[:-1]).all()


def test_the_caption_of_the_results_names_only_what_is_drawn(folders):
    from ippo_lightning.report.plots import results_legend

    def of(root):
        return results_legend(report.read_comparison(root))

    single = folders.comparison(seeds=1, methods=("ppo",), iterations=2, episodes=2)
    assert of(single) == "Dot: the result of one run."
    three = type(folders)(single.parent / "three").comparison(seeds=3, methods=("ppo",), iterations=2, episodes=2)
    assert of(three) == "Large dot: mean; small dots: seeds; bar: range of the seeds."
    five = type(folders)(single.parent / "five").comparison(seeds=5, methods=("sft", "ppo"), iterations=2, episodes=2)
    assert of(five) == (
        "Large dot: mean; small dots: seeds; bar: 95 % interval over seeds; dotted: a method that was not trained here."
    )
