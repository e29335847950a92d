from __future__ import annotations

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.report import gather_runs, read_comparison, with_roles


def test_methods_keep_their_display_order(folders):
    comparison = read_comparison(folders.comparison(seeds=2, iterations=2))
    assert list(comparison.methods) == ["sft", "ppo", "random", "ippo"]
    assert [run.seed for run in comparison.methods["ippo"].runs] == [1, 2]
    assert comparison.unfinished == ()


def test_runs_that_did_not_finish_are_named_and_left_out(folders):
    folders.run("ppo", 1, iterations=4)
    folders.run("ppo", 2, iterations=4, finished=False)
    folders.list_methods({"ppo": {"title": "PPO", "seeds": [1, 2, 3]}})
    comparison = read_comparison(folders.root)
    assert comparison.unfinished == (
        "PPO, seed 2: stopped after 4 iterations, no final results",
        "PPO, seed 3: nothing recorded",
    )
    assert [run.seed for run in comparison.methods["ppo"].finished] == [1]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "{",
        "[]",
        "{}",
        '{"methods": {}}',
        '{"methods": {"../ppo": {"seeds": [1]}}}',
        '{"methods": {"ppo": {"seeds": "1"}}}',
        '{"methods": {"ppo": {"seeds": [true]}}}',
        '{"methods": {"ppo": {"seeds": [1]}, "a/../b": {"seeds": [1]}}}',
        '{"methods": {"ppo": {"seeds": [1], "baseline": "sft"}}}',
        '{"methods": {"ppo": {"seeds": [1], "baseline": "ppo"}}}',
        '{"methods": {"ppo": {"seeds": [1], "baseline": ["ppo"]}}}',
        '{"methods": {"ppo": 3}}',
    ],
)
def test_an_unusable_listing_is_refused_in_one_line(tmp_path, text):
    if text is not None:
        (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(UserError, match=r"comparison\.json") as error:
        read_comparison(tmp_path)
    assert "\n" not in str(error.value)


def test_roles_are_read_from_the_listing(folders):
    comparison = read_comparison(folders.comparison(seeds=1, iterations=1))
    assert {name: method.baseline for name, method in comparison.methods.items()} == {
        "sft": "ppo", "ppo": None, "random": "ppo", "ippo": "ppo",
    }  # fmt: skip
    assert [name for name, method in comparison.methods.items() if method.featured] == ["ippo"]
    assert comparison.baselines == ("ppo",)


def test_a_listing_without_roles_has_none(folders):
    folders.list_methods({"ppo": {"seeds": [1]}, "ippo": {"seeds": [1]}})
    methods = read_comparison(folders.root).methods.values()
    assert {(method.baseline, method.featured) for method in methods} == {(None, False)}


def test_a_method_may_lie_in_folders_of_its_task_and_model(folders):
    folders.run("ppo", 1, iterations=2)
    (folders.root / "arithmetic").mkdir()
    (folders.root / "ppo").rename(folders.root / "arithmetic" / "ppo")
    folders.list_methods({"arithmetic/ppo": {"seeds": [1]}})
    assert read_comparison(folders.root).methods["arithmetic/ppo"].finished


def test_roles_of_runs_side_by_side_are_given_by_name(folders):
    runs = [folders.run(method, 1, iterations=1) for method in ("ppo", "random", "ippo")]
    comparison = gather_runs(runs, root=folders.root)
    assert comparison.baselines == ()
    comparison = with_roles(comparison, baseline="random", featured="ppo")
    assert [method.baseline for method in comparison.methods.values()] == ["random", None, "random"]
    assert [method.featured for method in comparison.methods.values()] == [True, False, False]


@pytest.mark.parametrize("role", ["baseline", "featured"])
def test_a_role_for_an_unknown_method_is_refused_in_one_line(folders, role):
    comparison = gather_runs([folders.run("ppo", 1, iterations=1)], root=folders.root)
    with pytest.raises(UserError, match=rf"^{role}: 'ipo' is no method of this report; expected one of \['ppo'\]$"):
        with_roles(comparison, **{role: "ipo"})


@pytest.mark.parametrize("jobs", [1, 2, 21])
def test_one_run_at_a_time_is_singular(folders, jobs):
    folders.list_methods({"ppo": {"seeds": [1]}}, machine=f"2 cores, {jobs} runs at a time")
    assert read_comparison(folders.root).machine == f"2 cores, {jobs} {'run' if jobs == 1 else 'runs'} at a time"
