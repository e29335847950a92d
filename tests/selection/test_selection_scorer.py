"""How the filter scores: each option has its effect, the target gradient lasts as long as it should, health shows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_parts import prepared, same, tiny_data, tiny_loop, tiny_module, trainable

from ippo_lightning.callbacks import InfluenceFilter, ScoringSettings
from ippo_lightning.errors import UserError
from ippo_lightning.influence import ChecksumError, agree_to_drop
from ippo_lightning.modules import PPOModule
from ippo_lightning.records import Episodes, UpdatePlan
from ippo_lightning.selection import grouped_gradients, scorer
from ippo_lightning.selection.score_health import part_fractions

ROUNDING = 1e-5
"""float32 scores of a tiny model, as a fraction of the largest."""


def scored(
    module: PPOModule,
    episodes: Episodes,
    *,
    iteration: int = 1,
    callback: InfluenceFilter | None = None,
    **scoring: Any,
) -> UpdatePlan:
    data = tiny_data()
    data.setup()
    callback = callback or InfluenceFilter(scoring=ScoringSettings(**scoring))
    callback.iteration = iteration
    plan = UpdatePlan(episodes=episodes)
    callback.on_rollout_end(SimpleNamespace(datamodule=data, should_stop=False), module, plan)
    return plan


@pytest.fixture
def module(tmp_path: Path) -> PPOModule:
    module = tiny_module()
    tiny_loop(tmp_path / "run", module, max_iterations=1).fit()  # leaves Adam with a state
    return module


@pytest.fixture
def episodes(module: PPOModule) -> Episodes:
    torch.manual_seed(2)
    return prepared(module)


def scores_of(plan: UpdatePlan) -> torch.Tensor:
    scores = plan.history[0].scores
    assert scores is not None
    return scores


@pytest.mark.parametrize("method", ["per_episode", "forward", "finite_difference"])
def test_every_way_gives_the_scores_of_the_hooks(method: str, module: PPOModule, episodes: Episodes) -> None:
    exact, found = scores_of(scored(module, episodes)), scores_of(scored(module, episodes, method=method))
    allowed = 2e-2 if method == "finite_difference" else ROUNDING
    assert float((found - exact).abs().max() / exact.abs().max()) <= allowed


def count_forwards(module: PPOModule, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls, honest = [], module.episode_losses

    def counted(part: Any) -> torch.Tensor:
        calls.append(len(part))
        return honest(part)

    monkeypatch.setattr(module, "episode_losses", counted)
    return calls


@pytest.mark.parametrize(("known", "num_forwards"), [(True, 1), (False, 2)])
def test_a_module_that_cannot_know_its_losses_gets_two_sided_differences(
    known: bool, num_forwards: int, module: PPOModule, episodes: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = scores_of(scored(module, episodes))
    if not known:
        monkeypatch.setattr(module, "rollout_losses", lambda episodes: None)
    calls = count_forwards(module, monkeypatch)
    found = scores_of(scored(module, episodes, method="finite_difference", health_every_n_iterations=0))
    # stored losses are compared with a forward of the first eight rows
    assert sum(calls) == num_forwards * len(episodes) + (8 if known else 0)
    assert float((found - exact).abs().max() / exact.abs().max()) <= 2e-2


def test_stored_losses_do_not_belong_to_a_function_that_replaces_the_modules_own(
    module: PPOModule, episodes: Episodes
) -> None:
    def doubled(module: PPOModule, part: Any) -> torch.Tensor:
        return 2 * module.episode_losses(part) + 1

    scoring = ScoringSettings(method="finite_difference", health_every_n_iterations=0)
    callback = InfluenceFilter(scoring=scoring, episode_losses=doubled)
    exact, found = scores_of(scored(module, episodes)), scores_of(scored(module, episodes, callback=callback))
    assert float((found - 2 * exact).abs().max() / exact.abs().max()) <= 4e-2


@pytest.mark.parametrize(
    "options",
    [
        {"normalise": "cosine"},
        {"normalise": "length"},
        {"adam_aware": True},
        {"include": ["*layers*"]},
        {"exclude": ["*embed*"]},
    ],
    ids=str,
)
def test_every_option_changes_the_scores(options: dict[str, Any], module: PPOModule, episodes: Episodes) -> None:
    plain, changed = scores_of(scored(module, episodes)), scores_of(scored(module, episodes, **options))
    assert torch.isfinite(changed).all()
    assert not torch.allclose(plain / plain.norm(), changed / changed.norm(), rtol=1e-3)


def test_batches_change_nothing_and_memory_that_is_too_small_halves_them(
    module: PPOModule, episodes: Episodes, monkeypatch: pytest.MonkeyPatch, memory_error: Exception
) -> None:
    whole = scores_of(scored(module, episodes))
    small = scores_of(scored(module, episodes, max_tokens=40))
    torch.testing.assert_close(small, whole, rtol=1e-4, atol=1e-6)
    limit, honest = 5, module.episode_losses

    def tight(part: Episodes) -> torch.Tensor:
        if len(part) > limit:
            raise memory_error
        return honest(part)

    monkeypatch.setattr(module, "episode_losses", tight)
    with pytest.warns(UserWarning, match="memory is too small, continuing with"):
        torch.testing.assert_close(scores_of(scored(module, episodes)), whole, rtol=1e-4, atol=1e-6)
    limit = 0
    with (
        pytest.raises(UserError, match=r"max_tokens: one episode of \d+ tokens does not fit in the device's memory"),
        pytest.warns(UserWarning, match="memory"),
    ):
        scored(module, episodes)


@pytest.mark.parametrize("method", ["hooks", "per_episode", "forward", "finite_difference"])
def test_only_the_pass_that_failed_is_made_again(
    method: Any, module: PPOModule, episodes: Episodes, monkeypatch: pytest.MonkeyPatch, memory_error: Exception
) -> None:
    callback = InfluenceFilter(scoring=ScoringSettings(method=method, health_every_n_iterations=0))
    whole = scores_of(scored(module, episodes, callback=callback))
    honest, made, failed = module.episode_losses, [], []

    def tight(part: Episodes) -> torch.Tensor:
        if len(made) >= 1 and not failed:
            failed.append(len(part))
            raise memory_error
        made.append(len(part))
        return honest(part)

    monkeypatch.setattr(module, "episode_losses", tight)
    with pytest.warns(UserWarning, match="continuing with"):
        found = scores_of(scored(module, episodes, callback=callback))
    torch.testing.assert_close(found, whole, rtol=2e-2 if method == "finite_difference" else 1e-4, atol=1e-4)
    # Per_episode and forward have no check in this call, and hooks had theirs in the call before. A difference compares
    # the stored losses with a forward of its first pass, which is the last one made.
    checked = made[-1] if method == "finite_difference" else 0
    assert sum(made) == len(episodes) + checked, "the pass before the one that failed is not made again"
    # a resumed run continues with the passes that fit
    resumed = InfluenceFilter()
    resumed.load_state_dict(callback.state_dict())
    assert resumed.selector.scorer.size.tokens == callback.selector.scorer.size.tokens < 16384


def test_a_target_gradient_is_taken_again_when_it_is_due_and_not_before(module: PPOModule, episodes: Episodes) -> None:
    callback = InfluenceFilter(scoring=ScoringSettings(refresh_every_n_iterations=3, health_every_n_iterations=0))
    norms = []
    for iteration in range(4):
        norms.append(
            scored(module, episodes, iteration=iteration, callback=callback).metrics["influence/gradient_norm"]
        )
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.01)
    assert norms[0] == norms[1] == norms[2] != norms[3]


def test_a_run_with_a_lasting_direction_resumes_to_the_bit(tmp_path: Path) -> None:
    def callbacks() -> list[InfluenceFilter]:
        return [InfluenceFilter(scoring=ScoringSettings(refresh_every_n_iterations=4))]

    whole = tiny_module()
    tiny_loop(tmp_path / "whole", whole, callbacks=callbacks(), max_iterations=3).fit()
    tiny_loop(tmp_path / "parts", tiny_module(), callbacks=callbacks(), max_iterations=2).fit()
    resumed = tiny_module()
    tiny_loop(tmp_path / "parts", resumed, callbacks=callbacks(), max_iterations=3, resume=True).fit()
    assert same(trainable(whole), trainable(resumed))


def test_health_shows_in_the_log_when_it_is_due(tmp_path: Path) -> None:
    callbacks = [InfluenceFilter(scoring=ScoringSettings(health_every_n_iterations=2, health_groups=3))]
    tiny_loop(tmp_path / "run", tiny_module(), callbacks=callbacks, max_iterations=3).fit()
    rows = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    names = ("halves_cosine", "halves_sign_agreement", "sign_certain_fraction", "interval_width")
    for number, row in enumerate(rows):
        assert all((f"influence/{name}" in row) == (number % 2 == 0) for name in names)
    first = rows[0]
    assert -1 <= first["influence/halves_cosine"] <= 1
    assert 0 <= first["influence/sign_certain_fraction"] <= 1
    shares = [value for name, value in first.items() if name.startswith("influence/part_")]
    assert sum(shares) == pytest.approx(1)
    assert {"influence/part_attention", "influence/part_mlp", "influence/part_embedding"} <= first.keys()


@pytest.mark.parametrize(("at_once", "passes"), [(True, 1), (False, 3)], ids=["at once", "one after the other"])
def test_groups_are_scored_on_a_sample_and_the_scores_are_those_without_groups(
    at_once: bool, passes: int, module: PPOModule, episodes: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouped_gradients, "fit_at_once", lambda *arguments, **named: at_once)
    monkeypatch.setattr(scorer, "_FEWEST_SAMPLED", 3)
    monkeypatch.setattr(scorer, "_CHECK_COST", 1e-9)  # one check, in the first call
    callback = InfluenceFilter(scoring=ScoringSettings(health_every_n_iterations=2, health_groups=3))
    scored(module, episodes, iteration=0, callback=callback)
    calls = count_forwards(module, monkeypatch)
    without = scored(module, episodes, iteration=1, callback=callback)
    assert sum(calls) == len(episodes)
    calls.clear()
    sampled = scored(module, episodes, iteration=2, callback=callback)
    assert sum(calls) == len(episodes) + 3 * passes
    # to the bit, up to the target gradient, whose mean is that of three groups here
    torch.testing.assert_close(scores_of(sampled), scores_of(without), rtol=1e-4, atol=1e-6)
    assert 0 <= sampled.metrics["influence/halves_sign_agreement"] <= 1
    assert sampled.metrics["influence/interval_width"] > 0
    assert "influence/interval_width" not in without.metrics
    calls.clear()
    everyone = InfluenceFilter(drop_when="all", scoring=ScoringSettings(health_groups=3))
    scored(module, episodes, callback=everyone)
    assert sum(calls) == len(episodes) + 2, "a vote of the groups needs every row, and two are checked"


@pytest.mark.parametrize("num_rows", [48, 64, 256, 512, 4096])
def test_health_and_checks_cost_a_few_percent_of_scoring(num_rows: int) -> None:
    settings = ScoringSettings()
    one = scorer.Scorer(settings, interface=InfluenceFilter().selector.interface)
    one._has_checked = True
    iterations = 1000
    checked = sum(one._check_is_due(num_rows, iteration) for iteration in range(iterations))
    # a score is one forward and one backward, a check has a second backward: at most twice the cost
    assert 0 < 2 * 2 * checked <= 0.03 * num_rows * iterations
    sample = one._sample(torch.arange(num_rows), size=num_rows, num_groups=8)
    assert len(sample) == len(sample.unique()) >= 5
    # a contraction costs at most a forward: 2 + 8 of them beside the forward, where a score takes three
    assert len(sample) * 11 / 3 * (1 / settings.health_every_n_iterations) <= 0.05 * num_rows or len(sample) == 8


def test_a_score_that_is_wrong_is_found_in_the_first_call_of_a_run(
    module: PPOModule, episodes: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer, "_CHECK_COST", 1e-9)
    honest = module.episode_losses

    def mixed(part: Any) -> torch.Tensor:  # an episode's loss that depends on its neighbour
        losses = honest(part)
        return losses + losses.roll(1)

    monkeypatch.setattr(module, "episode_losses", mixed)
    with pytest.raises(ChecksumError):
        scored(module, episodes, iteration=7)


def test_the_mean_does_not_depend_on_the_groups(module: PPOModule, episodes: Episodes) -> None:
    with_groups = scores_of(scored(module, episodes, iteration=0, health_groups=4))
    without = scores_of(scored(module, episodes, health_every_n_iterations=0))
    torch.testing.assert_close(with_groups, without, rtol=1e-4, atol=1e-6)


def test_dropping_only_where_all_groups_agree_keeps_more(module: PPOModule, episodes: Episodes) -> None:
    mean = scored(module, episodes, iteration=0)
    callback = InfluenceFilter(drop_when="all", scoring=ScoringSettings(health_groups=3))
    agreed = scored(module, episodes, iteration=1, callback=callback)
    assert int(agreed.keep.sum()) > int(mean.keep.sum())
    assert bool((agreed.keep | ~mean.keep).all())
    # force_keep ones without a positive mean score weigh as little as the lightest of the others
    force_keep = agreed.keep & (scores_of(agreed) <= 0)
    assert float(agreed.weights[force_keep].max()) == pytest.approx(float(agreed.weights[agreed.keep].min()))
    assert not agree_to_drop(torch.tensor([[1.0], [-1.0]]))[0]


def test_parts_of_a_model_are_told_by_their_names() -> None:
    ones = torch.ones(2)
    names = {
        "policy.model.model.embed_tokens.weight": "embedding",
        "policy.model.model.layers.0.self_attn.q_proj.weight": "attention",
        "policy.model.model.layers.0.mlp.up_proj.weight": "mlp",
        "policy.model.model.layers.0.input_layernorm.weight": "norm",
        "transformer.h.0.ln_1.bias": "norm",
        "transformer.h.0.attn.c_proj.weight": "attention",
        "something.else": "other",
    }
    shares = part_fractions(dict.fromkeys(names, ones))
    assert shares == pytest.approx({kind: list(names.values()).count(kind) / len(names) for kind in shares})
    assert part_fractions({"weight": torch.zeros(2)}) == {}


@pytest.mark.parametrize(
    "options",
    [
        {"refresh_every_n_iterations": 0},
        {"max_tokens": 0},
        {"max_tokens": "many"},
        {"health_groups": 1},
        {"health_every_n_iterations": -1},
    ],
    ids=str,
)
def test_a_number_out_of_its_range_is_named(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"InfluenceFilter.scoring.{next(iter(options))}"):
        ScoringSettings(**options)


def test_a_pattern_that_fits_nothing_is_named(module: PPOModule, episodes: Episodes) -> None:
    with pytest.raises(UserError, match="exclude: '\\*typo\\*' matches no parameter"):
        scored(module, episodes, exclude=["*typo*"])
