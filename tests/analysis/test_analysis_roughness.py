"""Roughness is that of its definition, and its control is what chance gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ippo_lightning.analysis.roughness import FEWEST_ROWS, measured_roughness, neighbour_graph, roughness_of

OF_PERMUTATIONS = 0.02
"""The mean of 200 orders is not that of all."""

FP64 = 1e-12


def by_double_sums(scores: list[float], points: list[list[float]], *, neighbours: int) -> float:
    """The definition, row by row."""
    largest = max(map(abs, scores))
    pairs = []
    for i, point in enumerate(points):
        others = sorted((math.dist(point, other), j) for j, other in enumerate(points) if j != i)
        pairs += [(distance, i, j) for distance, j in others[:neighbours]]
    distances = sorted(distance for distance, _, _ in pairs)
    scale = distances[(len(distances) - 1) // 2]
    weights = [math.exp(-((distance / scale) ** 2)) for distance, _, _ in pairs]
    squares = [((scores[i] - scores[j]) / largest) ** 2 for _, i, j in pairs]
    return sum(w * s for w, s in zip(weights, squares, strict=True)) / sum(weights)


def test_roughness_of_three_points_is_that_by_hand() -> None:
    # Neighbours: 0 of 1, 1 of 0, 1 of 3; distances 1, 1, 2 with the median 1; scores over the largest 1/4, 1/2, 1.
    graph = neighbour_graph(torch.tensor([[0.0], [1.0], [3.0]]), neighbours=1)
    near, far = math.exp(-1), math.exp(-4)
    expected = (2 * near * 0.25**2 + far * 0.5**2) / (2 * near + far)
    assert roughness_of(torch.tensor([1.0, 2.0, 4.0]), graph) == pytest.approx(expected, abs=FP64)


def test_roughness_is_that_of_its_definition() -> None:
    points, scores = torch.randn(40, 3, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
    found = roughness_of(scores, neighbour_graph(points, neighbours=5))
    assert found == pytest.approx(by_double_sums(scores.tolist(), points.tolist(), neighbours=5), abs=FP64)


def test_more_rows_than_a_chunk_have_their_own_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    points, scores = torch.randn(70, 3, dtype=torch.float64), torch.randn(70, dtype=torch.float64)
    monkeypatch.setattr("ippo_lightning.analysis.roughness._CHUNK", 16)
    found = roughness_of(scores, neighbour_graph(points, neighbours=5))
    assert found == pytest.approx(by_double_sums(scores.tolist(), points.tolist(), neighbours=5), abs=FP64)


def test_rows_at_the_same_place_are_neighbours_and_others_do_not_count() -> None:
    points = torch.tensor([[0.0], [0.0], [0.0], [5.0], [5.0], [5.0]])
    graph = neighbour_graph(points, neighbours=3)
    assert graph.weights.sum() == 12  # two at the same place for each of six
    assert roughness_of(torch.tensor([1.0, 1, 1, 3, 3, 3]), graph) == 0


@pytest.mark.parametrize(
    ("is_smooth", "is_below"), [(True, True), (False, False)], ids=["like the place", "without order"]
)
def test_only_scores_that_neighbours_share_are_smoother_than_chance(is_smooth: bool, is_below: bool) -> None:
    points = torch.linspace(0, 1, 200)[:, None]
    scores = points[:, 0] + 0.1 if is_smooth else torch.rand(200)
    found = measured_roughness(scores, points, neighbours=20, seed=0)
    assert found is not None
    assert (found.value < found.low) is is_below
    assert found.low < found.mean < found.high
    assert (found.relative < 0.5) is is_smooth


def test_chance_is_the_mean_over_all_orders() -> None:
    # Over all orders a pair of different rows has the mean square of two scores that are drawn without putting back.
    points, scores = torch.randn(60, 2), torch.rand(60)
    found = measured_roughness(scores, points, neighbours=20, seed=0)
    scaled = scores.double() / scores.max()
    expected = float(2 * scaled.var(correction=1))
    assert found is not None
    assert found.mean == pytest.approx(expected, rel=OF_PERMUTATIONS)


def test_many_rows_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ippo_lightning.analysis.roughness.MOST_ROWS", 30)
    found = measured_roughness(torch.rand(100), torch.randn(100, 2), neighbours=20, seed=0)
    assert found is not None
    assert found.rows == 30


@pytest.mark.parametrize(
    "scores",
    [torch.rand(FEWEST_ROWS - 1), torch.ones(50), torch.zeros(0)],
    ids=["few rows", "equal scores", "no row"],
)
def test_there_is_no_roughness_without_rows_that_differ(scores: Tensor) -> None:
    assert measured_roughness(scores, torch.randn(len(scores), 2), neighbours=20, seed=0) is None
