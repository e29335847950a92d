"""Scores from hidden states, against forwards of plain transformers with hooks and cases computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_episodes import make_episodes
from torch import Tensor
from training_parts import TINY, prepared, tiny_data, tiny_loop, tiny_module, tiny_policy

from ippo_lightning.callbacks import InfluenceFilter, ScoringSettings
from ippo_lightning.errors import UserError
from ippo_lightning.modules import PPOModule
from ippo_lightning.records import TextEpisodes, UpdatePlan
from ippo_lightning.selection import ActivationDifference, Demonstrations, DropNegatives, ForwardTarget
from ippo_lightning.selection.activations import difference_scores

FLOAT64 = 1e-10
FLOAT32 = 1e-5
LAYERS = 3


def deep_module(**changes: Any) -> PPOModule:
    return tiny_module(policy=tiny_policy(config={**TINY, "num_hidden_layers": LAYERS}), **changes)


def hooked(module: PPOModule, prompt: list[int], response: list[int], *, layer: int) -> Tensor:
    """The mean output of a layer over a response: one forward of the model, for this row alone, without padding."""
    found: list[Tensor] = []
    trunk: Any = module.policy.language_model.base_model

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handle = trunk.layers[layer - 1].register_forward_hook(keep)
    with torch.no_grad():
        trunk(input_ids=torch.tensor([prompt + response]), use_cache=False)
    handle.remove()
    return found[0].reshape(len(prompt + response), -1)[len(prompt) :].mean(dim=0)


def hooked_rows(module: PPOModule, rows: Any, mask: Tensor, *, layer: int) -> Tensor:
    ids = zip(rows.prompt_ids, rows.prompt_mask, rows.response_ids, mask, strict=True)
    pairs = [(prompt[real].tolist(), response[own].tolist()) for prompt, real, response, own in ids]
    return torch.stack([hooked(module, *pair, layer=layer) for pair in pairs])


@pytest.mark.parametrize(("layer", "number"), [(1, 1), (2, 2), (None, 2)])
def test_activations_are_those_of_a_forward_of_each_row_alone(layer: int | None, number: int) -> None:
    module = deep_module(update={"micro_batch_size": 3})
    module.policy.double()
    episodes = prepared(module)
    data = tiny_data()
    data.setup()
    (batch, *_) = data.influence_dataloader()
    demonstrations = module.encode_demonstrations(batch)
    for rows, encoded, mask in (
        (episodes, episodes, episodes.mask),
        (batch, demonstrations, demonstrations.response_mask),
    ):
        expected = hooked_rows(module, encoded, mask, layer=number)
        found = module.response_activations(rows, layer=layer)
        torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT64)


def rows_of(advantages: list[float], group: list[int]) -> TextEpisodes:
    episodes = make_episodes([1] * len(group), [2] * len(group))
    columns = torch.tensor(advantages, dtype=torch.float64)[:, None] * episodes.mask
    return episodes.evolve(advantages=columns, group=torch.tensor(group))


def test_a_better_and_a_worse_response_to_a_prompt_score_as_a_pair_of_preferences() -> None:
    better, worse, behaviour = (torch.tensor(numbers).double() for numbers in ([3.0, 1.0], [0.0, 5.0], [1.0, 1.0]))
    hidden = torch.stack([better, worse])
    scores = difference_scores(rows_of([0.7, -0.7], [4, 4]), hidden, mean=torch.zeros(2).double(), behaviour=behaviour)
    # better - worse = (3, -4): its cosine with (1, 1) is -1 / (5 sqrt 2)
    expected = -1 / (5 * 2**0.5)
    assert scores.tolist() == pytest.approx([expected, expected], abs=FLOAT64)


def test_a_response_that_is_alone_is_compared_with_the_rollout() -> None:
    hidden = torch.tensor([[3.0, 4.0], [0.0, 1.0], [2.0, 1.0], [5.0, 5.0]]).double()
    mean, behaviour = torch.tensor([1.0, 1.0]).double(), torch.tensor([0.0, 2.0]).double()
    episodes = rows_of([1.0, -2.0, 0.0, -3.0], [0, 1, 2, 3])
    scores = difference_scores(episodes, hidden, mean=mean, behaviour=behaviour)
    # differences (2, 3), (-1, 0), (1, 0) and (4, 4), against the second axis
    assert scores.tolist() == pytest.approx([3 / 13**0.5, 0.0, 0.0, -(0.5**0.5)], abs=FLOAT64)


def test_a_run_keeps_the_rows_that_lean_towards_the_demonstrations(tmp_path: Path) -> None:
    module, data = deep_module(), tiny_data()
    chosen = InfluenceFilter(rule=DropNegatives(fraction=1.0), target=ActivationDifference(layer=2), min_keep=1)
    expected: list[Tensor] = []

    class Oracle:
        def on_rollout_end(self, trainer: Any, pl_module: Any, plan: UpdatePlan) -> None:
            episodes: Any = plan.episodes
            rows = hooked_rows(module, episodes, episodes.mask, layer=2)
            encoded = [module.encode_demonstrations(batch) for batch in data.influence_dataloader()]
            good = torch.cat([hooked_rows(module, one, one.response_mask, layer=2) for one in encoded])
            for row, members in enumerate(episodes.group[:, None] == episodes.group):
                difference = rows[row] - rows[members].mean(dim=0)
                cosine = torch.nn.functional.cosine_similarity(difference, good.mean(0) - rows.mean(0), dim=0)
                advantages = episodes.advantages[row][episodes.mask[row]]
                expected.append(cosine * advantages.mean().sign())

    tiny_loop(tmp_path / "run", module, callbacks=[Oracle(), chosen], data=data, max_iterations=1).fit()
    assert module.last_stats is not None
    change = module.last_stats.plan.history[-1]
    assert change.scores is not None
    torch.testing.assert_close(change.scores, torch.stack(expected), rtol=0, atol=FLOAT32)
    assert module.last_stats.plan.keep.tolist() == (change.scores >= 0).tolist()
    metrics = module.last_stats.metrics
    assert 0 < metrics["influence/scored_kept_fraction"] < 1
    assert "influence/score_median" in metrics
    assert "influence/gradient_norm" not in metrics


class Broken(ForwardTarget):
    def __init__(self, found: Any) -> None:
        self.found = found

    def scores(self, module: Any, plan: UpdatePlan, *, trainer: Any = None) -> Any:
        return self.found


def test_a_row_without_a_finite_score_is_named_or_left_out() -> None:
    module = tiny_module()
    scores = torch.tensor([1.0, torch.nan, 0.5, -1.0])
    plan = UpdatePlan(episodes=rows_of([1.0] * 4, [0, 0, 1, 1]))
    with pytest.raises(FloatingPointError, match=r"NaN or infinity in the score of .* 1 \(prompt 'prompt 1'\)"):
        InfluenceFilter(target=Broken(scores)).on_rollout_end(None, module, plan)
    InfluenceFilter(target=Broken(scores), on_nonfinite="skip", power=0.0).on_rollout_end(None, module, plan)
    assert plan.keep.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scoring": ScoringSettings(adam_aware=True)}, r"scoring\.adam_aware: True, and .* takes no gradients"),
        ({"scoring": ScoringSettings(normalise="cosine")}, r"scoring\.normalise: cosine, and .* takes no gradients"),
        ({"drop_when": "all"}, r"drop_when: all, and ActivationDifference takes no gradients; use mean"),
    ],
)
def test_settings_of_gradients_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        InfluenceFilter(**{"target": ActivationDifference(), **settings})


def test_a_layer_that_the_model_lacks_is_refused_before_the_first_iteration(tmp_path: Path) -> None:
    module = deep_module()
    chosen = InfluenceFilter(target=ActivationDifference(layer=4))
    with pytest.raises(UserError, match=r"target\.layer: 4, and the model has 3 layers; expected 1 to 3, or null"):
        tiny_loop(tmp_path / "run", module, callbacks=[chosen]).fit()
    assert module.iteration == 0


def test_a_module_without_hidden_states_is_refused() -> None:
    with pytest.raises(UserError, match="Linear has no method response_activations"):
        ActivationDifference().require(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(("found", "message"), [([1.0], "returned list"), (torch.zeros(3), r"returned \(3,\)")])
def test_a_target_that_returns_no_number_per_row_is_named(found: Any, message: str) -> None:
    plan = UpdatePlan(episodes=rows_of([1.0] * 4, [0, 0, 1, 1]))
    with pytest.raises(UserError, match=rf"Broken\.scores: {message}; expected shape \(4,\)"):
        InfluenceFilter(target=Broken(found)).on_rollout_end(None, tiny_module(), plan)


def test_a_layer_below_the_first_is_refused() -> None:
    with pytest.raises(UserError, match=r"target\.layer: 0 is out of range"):
        ActivationDifference(layer=0)


def test_it_has_no_gradient() -> None:
    assert not isinstance(Demonstrations(), ForwardTarget)
    with pytest.raises(UserError, match="ActivationDifference has no loss"):
        ActivationDifference().loss(None, UpdatePlan(episodes=rows_of([1.0], [0])))
