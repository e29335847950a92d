"""How much scores differ between neighbours: the roughness of IIF, and what chance would give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_ROWS = 2048
"""More rows are drawn at random: the distances of all pairs are computed."""
PERMUTATIONS = 200
FEWEST_ROWS = 20
"""Of fewer rows, no roughness is computed: almost all would be neighbours of each other."""
_CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The nearest neighbours of each row, with weights."""

    neighbours: Tensor
    """[rows, neighbours] int64."""
    weights: Tensor
    """[rows, neighbours] float64, exp(-d^2 / s^2)."""


@dataclass(frozen=True, kw_only=True)
class Roughness:
    """Roughness of the scores, and of the same scores shuffled over the rows."""

    value: float
    mean: float
    """Over the permutations."""
    low: float
    """The 2.5 % quantile of the permutations."""
    high: float
    """The 97.5 % quantile of the permutations."""
    rows: int
    """From which it was computed."""

    @property
    def relative(self) -> float:
        """Roughness over what chance gives: below 1 the scores are smoother."""
        return self.value / self.mean


def neighbour_graph(embeddings: Tensor, *, neighbours: int) -> Graph:
    """Return the nearest neighbours of each row, with w = exp(-d^2 / s^2); s is the median distance to a neighbour.

    Without a distance between most neighbours (s = 0) only neighbours at the same place count.

    Args:
        embeddings: shape [rows, features], float.
        neighbours: of each row, >= 1; fewer of few rows.
    """
    # Exact distances: equal embeddings have the distance 0, and no rounding decides what counts.
    points = embeddings.double()
    rows, count = len(points), min(neighbours, len(points) - 1)
    found, places = [], []
    for start in range(0, rows, _CHUNK):
        part = points[start : start + _CHUNK]
        distances = torch.cdist(part, points, compute_mode="donot_use_mm_for_euclid_dist")
        own = torch.arange(len(part))
        distances[own, start + own] = torch.inf
        nearest = distances.topk(count, dim=1, largest=False)
        found.append(nearest.values)
        places.append(nearest.indices)
    distances = torch.cat(found)
    scale = distances.median()
    same = (distances == 0).double()
    weights = torch.exp(-((distances / scale) ** 2)) if scale > 0 else same
    return Graph(neighbours=torch.cat(places), weights=weights)


def roughness_of(scores: Tensor, graph: Graph) -> float:
    """Return sum w_ij (I_i - I_j)^2 / sum w_ij; I is divided by its largest absolute value.

    Source: Hu et al. 2025, arXiv 2505.19281 (IIF), temporal analysis.

    Args:
        scores: shape [rows], not all 0.
        graph: of the same rows.
    """
    scaled = scores.double() / scores.double().abs().max()
    squares = (scaled[:, None] - scaled[graph.neighbours]) ** 2
    return float((graph.weights * squares).sum() / graph.weights.sum())


def measured_roughness(scores: Tensor, embeddings: Tensor, *, neighbours: int, seed: int) -> Roughness | None:
    """Return the roughness of scores beside that of the same scores in random order.

    Args:
        scores: shape [rows].
        embeddings: shape [rows, features], of the same rows.
        neighbours: see `neighbour_graph`.
        seed: of the rows that are drawn if there are more than `MOST_ROWS`, and of the permutations.

    Returns:
        None of fewer than `FEWEST_ROWS` rows, of equal scores, or if no row has a neighbour that counts.
    """
    random = torch.Generator().manual_seed(seed)
    # In random order, also all of them: of neighbours at the same distance the first ones are taken.
    chosen = torch.randperm(len(scores), generator=random)[:MOST_ROWS]
    scores, embeddings = scores[chosen], embeddings[chosen]
    if len(scores) < FEWEST_ROWS or not bool((scores != scores[0]).any()):
        return None
    graph = neighbour_graph(embeddings, neighbours=neighbours)
    if not bool(graph.weights.sum() > 0):
        return None
    orders = (torch.randperm(len(scores), generator=random) for _ in range(PERMUTATIONS))
    shuffled = torch.tensor([roughness_of(scores[order], graph) for order in orders], dtype=torch.float64)
    low, high = torch.quantile(shuffled, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Roughness(
        value=roughness_of(scores, graph), mean=float(shuffled.mean()), low=low, high=high, rows=len(scores)
    )
