"""The numbers that tell whether a run is healthy, with their limits.

The limits are rules of thumb. Those of PPO follow common practice: a KL of an update near 0.01 and a clip fraction of
0.1 to 0.2. Those of the scores follow from chance: two unrelated halves agree on half of the signs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from ippo_lightning.report.records import Run

Word = Literal["good", "watch", "bad"]
_LEARNT = 0.95
"""Fraction of right responses from which on a policy has little to explore."""


@dataclass(frozen=True)
class Check:
    """One number and its limits. A limit that is None is open."""

    title: str
    meaning: str
    read: Callable[[Run], float | None]
    good: tuple[float | None, float | None]
    """Lowest and highest good value."""
    watch: tuple[float | None, float | None]
    """Lowest and highest value that is not bad."""
    too_low: str = ""
    """What to do about a value below the good ones."""
    too_high: str = ""
    """What to do about a value above the good ones."""
    is_success: Callable[[Run], bool | None] | None = None
    """Tells whether a low value belongs to a run that has learnt its task (True), or may be the price of learning that
    went on (False); None if nothing is known. Only for a number that falls when a policy becomes sure."""
    too_low_learning: str = ""
    """What to do about a value below the good ones, if the run went on learning."""
    is_percent: bool = False
    is_of_texts: bool = False
    """Whether a run in environments, without prompts and reference, records only a constant."""

    def word(self, value: float, *, success: bool | None = None) -> Word:
        """Return how good a value is.

        Args:
            value: of a method.
            success: of its runs, see `is_success`.
        """
        if success is not None and self._is_low(value):
            return "good" if success else "watch"
        return "good" if _within(value, self.good) else "watch" if _within(value, self.watch) else "bad"

    def advice(self, value: float, *, success: bool | None = None) -> str:
        """Return what to do about a value that is not good; arguments as of `word`."""
        if not self._is_low(value):
            return self.too_high
        return self.too_low if success is None else self.too_low_learning

    def _is_low(self, value: float) -> bool:
        return self.good[0] is not None and value < self.good[0]

    @property
    def good_words(self) -> str:
        """The good range in words."""
        low, high = ("" if limit is None else self._limit(limit) for limit in self.good)
        if low and high:
            return low if low == high else f"{low} to {high}"
        return f"at least {low}" if low else f"at most {high}"

    def _limit(self, value: float) -> str:
        return f"{100 * value:g} %" if self.is_percent else f"{value:g}"


def _within(value: float, limits: tuple[float | None, float | None]) -> bool:
    low, high = limits
    return (low is None or value >= low) and (high is None or value <= high)


def mean_of(key: str) -> Callable[[Run], float | None]:
    """Return a reader of the mean over all iterations that recorded a number."""
    return lambda run: _mean(list(run.series(key).values()))


def late(key: str) -> Callable[[Run], float | None]:
    """Return a reader of the mean over the last third of the iterations that recorded a number."""
    return lambda run: _mean(_last_third(list(run.series(key).values())))


def change(key: str) -> Callable[[Run], float | None]:
    """Return a reader of the mean over the last third, divided by the mean over the first third."""

    def read(run: Run) -> float | None:
        values = list(run.series(key).values())
        first = _mean(values[: max(1, len(values) // 3)])
        last = _mean(_last_third(values))
        # Of fewer iterations, both thirds would be single values.
        return None if len(values) < 6 or last is None or not first or first < 0 else last / first

    return read


def ratio(key: str, *divisors: str) -> Callable[[Run], float | None]:
    """Return a reader of a number divided by others, mean over the last third of the iterations that have all."""

    def read(run: Run) -> float | None:
        series = [run.series(name) for name in (key, *divisors)]
        found = []
        for iteration in sorted(set.intersection(*(set(one) for one in series))):
            value, below = series[0][iteration], 1.0
            for one in series[1:]:
                below *= one[iteration]
            found += [value / below] if below > 0 else []
        return _mean(_last_third(found))

    return read


def has_learnt(run: Run) -> bool | None:
    """Return whether a run has learnt its task; False if its results rose and did not fall; None otherwise.

    A task is learnt if the last third of its evaluations has 95 % right responses, or the return at which gymnasium
    calls the environment solved.
    """
    curve = "episode_return" if run.is_control else "exact_match"
    values = list(run.validation(curve).values())
    final = run.result(curve)
    values += [] if final is None else [final]
    late_value = _mean(_last_third(values))
    if late_value is None:
        return None
    goal = run.result("reward_threshold") if run.is_control else _LEARNT
    if goal is not None and late_value >= goal:
        return True
    third = max(1, len(values) // 3)
    first, middle = _mean(values[:third]), _mean(values[third:-third])
    rose = first is not None and middle is not None and late_value > first and late_value >= middle
    return False if rose else None


def total(*keys: str) -> Callable[[Run], float | None]:
    """Return a reader of the sum over all iterations; None if the run recorded none of the numbers."""

    def read(run: Run) -> float | None:
        values = [value for key in keys for value in run.series(key).values()]
        return sum(values) if values else None

    return read


def _equal_rewards(run: Run) -> float | None:
    """Return the fraction of prompts with equal rewards; with pilots, of those that are trained on."""
    trained = late("pilot_commit/zero_variance_fraction")(run)
    return late("rollout/zero_variance_fraction")(run) if trained is None else trained


def _selected(run: Run) -> float | None:
    """Return the kept fraction of a run that selects; plain PPO keeps everything, which is no finding."""
    kept = run.series("update/kept_fraction")
    selects = run.series("influence/scored_kept_fraction") or any(value < 1 for value in kept.values())
    return _mean(_last_third(list(kept.values()))) if selects else None


def _last_third(values: Sequence[float]) -> Sequence[float]:
    return values[-max(1, len(values) // 3) :]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


CHECKS: tuple[Check, ...] = (
    Check(
        "Agreement of the signs of both halves",
        "Two halves of the demonstrations give this fraction of the episodes the same sign; chance gives 50 %.",
        mean_of("influence/halves_sign_agreement"),
        good=(0.85, None), watch=(0.7, None), is_percent=True,
        too_low="Use more demonstrations, or demonstrations of one kind: with other ones the filter would drop others.",
    ),
    Check(
        "Cosine of the gradients of both halves",
        "How far two halves of the demonstrations point in the same direction; 0 is unrelated, 1 is equal.",
        mean_of("influence/halves_cosine"),
        good=(0.5, None), watch=(0.2, None),
        too_low="Use more demonstrations, or demonstrations of one kind. Near 0 the scores mean nothing.",
    ),
    Check(
        "Episodes whose sign is certain",
        "Fraction of the episodes whose 95 % interval over groups of demonstrations excludes zero.",
        mean_of("influence/sign_certain_fraction"),
        good=(0.6, None), watch=(0.3, None), is_percent=True,
        too_low="Use more demonstrations, or drop only what all groups reject (drop_when: all).",
    ),
    Check(
        "Kept fraction",
        "Fraction of the episodes that the update used, in the last third of training.",
        _selected,
        good=(0.2, 0.95), watch=(0.05, 1.0), is_percent=True,
        too_low="Few episodes are left: sample more per prompt, set min_keep, or end the run (IntrinsicStopping).",
        too_high="The filter drops almost nothing: compare with plain PPO, or raise threshold.",
    ),
    Check(
        "Effective sample size, as a fraction of the kept episodes",
        "How evenly the weights are spread over the kept episodes; 100 % is equal weights.",
        ratio("influence/effective_sample_size", "influence/scored_kept_fraction", "rollout/episodes"),
        good=(0.5, None), watch=(0.2, None), is_percent=True,
        too_low="A few episodes have all the weight: lower power, set max_weight, or set scoring.normalise: cosine.",
    ),
    Check(
        "Mean ratio of new to old policy",
        "Exactly 1 before the first step of an update, and close to it afterwards.",
        late("update/ratio_mean"),
        good=(0.95, 1.05), watch=(0.8, 1.25),
        too_low="Lower the learning rate or num_epochs. Far from 1 from the start: sampling and update disagree.",
        too_high="Lower the learning rate or num_epochs. Far from 1 from the start: sampling and update disagree.",
    ),
    Check(
        "KL of an update, nats per token",
        "How far one update moves the policy, in the last third of training.",
        late("update/approx_kl"),
        good=(None, 0.02), watch=(None, 0.1),
        too_high="An update moves the policy far: lower the learning rate or num_epochs.",
    ),
    Check(
        "Clip fraction",
        "Fraction of the tokens whose ratio is clipped, in the last third of training.",
        late("update/clip_fraction"),
        good=(None, 0.2), watch=(None, 0.4), is_percent=True,
        too_high="Much of the update is clipped away: lower the learning rate or num_epochs.",
    ),
    Check(
        "KL to the reference, nats per token",
        "How far the policy has moved from its reference, in the last third of training.",
        ratio("rollout/kl", "rollout/response_tokens_mean"),
        good=(None, 0.1), watch=(None, 0.5), is_of_texts=True,
        too_high="The policy leaves its reference: raise kl_controller.coef, and look for an exploited reward.",
    ),
    Check(
        "Entropy, late against early",
        "Entropy in the last third of training, divided by that in the first third.",
        change("update/entropy"),
        good=(0.3, 2.0), watch=(0.1, 4.0),
        is_success=has_learnt,
        too_low="The samples become alike: raise entropy_coef or the KL coefficient, or lower the learning rate.",
        too_low_learning="The policy became sure while its results rose. If they stop rising too early: raise "
        "entropy_coef or the KL coefficient.",
        too_high="The policy becomes random: lower entropy_coef or the learning rate.",
    ),
    Check(
        "Gradient norm, late against early",
        "Gradient norm in the last third of training, divided by that in the first third.",
        change("update/gradient_norm"),
        good=(None, 3.0), watch=(None, 10.0),
        too_high="The gradient grows: lower the learning rate, and look at the reward and the KL.",
    ),
    Check(
        "Truncated responses",
        "Fraction of the responses that the length limit cuts, in the last third of training.",
        late("rollout/truncated_fraction"),
        good=(None, 0.1), watch=(None, 0.3), is_percent=True, is_of_texts=True,
        too_high="Responses do not end: raise max_new_tokens, or set missing_eos_penalty.",
    ),
    Check(
        "Prompts whose responses all have the same reward",
        "A group baseline learns nothing from them. Fraction of the prompts, in the last third of training.",
        _equal_rewards,
        good=(None, 0.5), watch=(None, 0.9), is_percent=True, is_of_texts=True,
        too_high="Choose prompts (model.dynamic_sampling or model.pilot_commit), or take problems that the policy "
        "sometimes solves. Near the end of a task that is learnt, this is normal.",
    ),
    Check(
        "Gap between sampler and policy, nats per token",
        "Mean difference of the log-probs that the sampler and the policy give the same token.",
        late("rollout/sampler_gap_mean"),
        good=(None, 0.02), watch=(None, 0.1),
        too_high="Sample in higher precision, or set importance_cap.",
    ),
    Check(
        "Episodes with numbers that are not finite",
        "Episodes left out because a reward, log-prob, loss, gradient or score is NaN or infinite, over the whole run.",
        total("rollout/nonfinite_episodes", "update/nonfinite_episodes", "influence/nonfinite_episodes"),
        good=(0.0, 0.0), watch=(None, 10.0),
        too_high="The warnings in the log name them: mend the reward, or lower the learning rate.",
    ),
)  # fmt: skip
"""In display order."""
