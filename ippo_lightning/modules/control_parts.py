"""What a module of environments checks, and advantages of mean 0 and variance 1 in each minibatch."""

from __future__ import annotations

from torch import Tensor

from ippo_lightning.algorithms import AdvantageEstimator, PolicyLoss
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.errors import UserError
from ippo_lightning.records import ControlEpisodes

EPSILON = 1e-8
"""Added to a standard deviation, as in stable-baselines3."""


def require_parts(loss: object, advantages: object) -> None:
    """Check the objects that make the algorithm of an actor and a critic.

    Args:
        loss: a `PolicyLoss`.
        advantages: an `AdvantageEstimator` that reads values.

    Raises:
        UserError: another object, or an estimator without values: nothing would learn from the critic.
    """
    for field, part, expected in (("loss", loss, PolicyLoss), ("advantages", advantages, AdvantageEstimator)):
        if not isinstance(part, expected):
            name = f"ippo_lightning.algorithms.{expected.__name__}"
            raise UserError(f"model.{field}: got {type(part).__name__}; expected an object of a subclass of {name}")
    if not getattr(advantages, "needs_values", False):
        raise UserError(
            f"model.advantages: {type(advantages).__name__} reads no values; expected GAE, or another one that does"
        )


def require_whole_minibatches(update: UpdateSettings) -> None:
    """Refuse micro-batches: the advantages of a minibatch are normalised together.

    Args:
        update: of the module.

    Raises:
        UserError: a minibatch would be cut.
    """
    limits = {"micro_batch_size": update.micro_batch_size, "max_tokens": update.max_tokens}
    for name, limit in limits.items():
        if isinstance(limit, int) and limit < update.minibatch_size:
            raise UserError(
                f"update.{name}: {limit} cuts minibatches of {update.minibatch_size} transitions, whose advantages are "
                f"normalised together; expected at least {update.minibatch_size}, or normalise_advantages: none"
            )


def with_unit_advantages(episodes: ControlEpisodes, weights: Tensor) -> ControlEpisodes:
    """Return the rows with advantages of mean 0 and variance 1 over those that count; one alone stays as it is.

    Args:
        episodes: of one minibatch.
        weights: [rows] of their policy losses; a row of weight 0 does not count.
    """
    counts = (weights > 0)[:, None] & episodes.mask
    chosen = episodes.advantages[counts]
    if len(chosen) < 2:  # a filter may leave one row: its deviation is NaN
        return episodes
    # The unbiased deviation, as in stable-baselines3.
    return episodes.evolve(advantages=(episodes.advantages - chosen.mean()) / (chosen.std() + EPSILON))
