"""Which figures a report has: those with data, each with a caption and a text that describes it."""

from __future__ import annotations

from ippo_lightning.report import read_comparison
from ippo_lightning.report.all_figures import ALL_FIGURES, draw_figures


def test_figures_with_data_are_drawn_and_others_of_a_report_are_removed(folders, tmp_path):
    comparison = read_comparison(folders.comparison(seeds=1, iterations=12, episodes=4, methods=("ppo",)))
    for run in comparison.methods["ppo"].runs:
        # of two moments, because one makes no curve
        for number, row in enumerate(run.history[:2]):
            row["rollout/reward/right"] = 0.5 + number
        for number, row in enumerate(run.evaluations):
            row["reward/right"] = 0.6 + number
    for name in ("kl", "reward", "reward_part_gone", "reward_part_notes"):
        (tmp_path / f"{name}.png").write_bytes(b"of an earlier report, or the user's notes")
    (tmp_path.parent / "reward_part_x.png").write_bytes(b"of the user")
    listed = ("reward", "reward_part_gone", "notes", "../reward_part_x", "reward_part_/../../reward_part_x")
    figures = draw_figures(comparison, tmp_path, earlier=listed)
    assert {*figures, "reward_part_notes"} == {path.stem for path in tmp_path.glob("*.png")}
    assert (tmp_path.parent / "reward_part_x.png").exists()
    assert "reward" in figures
    assert "kl" not in figures  # no run recorded it
    parts = {"reward_part_right", "validation_reward_part_right"}
    assert set(figures) - set(ALL_FIGURES) == parts
    assert [name for name in figures if name not in parts] == [name for name in ALL_FIGURES if name in figures]
    for figure in figures.values():
        assert figure.caption.endswith(".")
        assert len(figure.alternative) > 40
