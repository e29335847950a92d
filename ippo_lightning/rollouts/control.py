"""From environments and a policy to episodes: fragments of equal length, one per environment."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.policies import ActorCritic
from ippo_lightning.records import ControlEpisodes
from ippo_lightning.rollouts.environments import EnvironmentSettings, Spaces, make_vector, spaces_of
from ippo_lightning.rollouts.running_moments import RunningMoments, normalised

RECENT = 100
"""Episodes whose mean return is logged."""


class _Step(NamedTuple):
    """One step of all environments; each array has one entry per environment."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    done: np.ndarray
    counts: np.ndarray
    cut: list[tuple[int, np.ndarray]]
    """Environments whose episode a limit has cut and that have begun another one, with the end of the one cut."""


class ControlRollouts:
    """Environments under a policy: episodes go on from one rollout to the next.

    Args:
        settings: of the environments.

    Raises:
        UserError: the environment cannot be made, or no policy here can read its spaces.
    """

    def __init__(self, settings: EnvironmentSettings) -> None:
        self.settings = settings
        self.spaces: Spaces = spaces_of(settings)
        shape = self.spaces.observations.shape
        self.observation_moments = RunningMoments(shape) if settings.normalise_observations else None
        self.return_moments = RunningMoments() if settings.normalise_rewards else None
        self.recent: deque[tuple[float, int]] = deque(maxlen=RECENT)
        """Return and length of the newest episodes, in units of the environment's reward."""
        self.finished = 0
        """Episodes that ended in the newest rollout."""
        self.seed: int | None = None
        self._vector: Any = None
        self._saved: Mapping[str, Any] | None = None
        self._raw = np.zeros(0)
        self._seen = np.zeros(0)
        self._clear_counters()

    def _clear_counters(self) -> None:
        count = self.settings.num_envs
        self._returns, self._discounted = np.zeros(count), np.zeros(count)
        self._lengths = np.zeros(count, dtype=np.int64)
        self._needs_reset = np.zeros(count, dtype=bool)

    # --- rollout ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def collect(self, policy: ActorCritic, *, num_steps: int, gamma: float) -> ControlEpisodes:
        """Return the next steps of each environment, shape [environments, steps], without advantages.

        Args:
            policy: draws the actions from torch's random stream.
            num_steps: of each environment.
            gamma: discount of the return that rewards are normalised by.
        """
        self._begin()
        self.finished = 0
        device = next(policy.parameters()).device
        steps = [self._step(policy, device, gamma) for _ in range(num_steps)]
        return self._record(policy, steps, device)

    def _step(self, policy: ActorCritic, device: torch.device, gamma: float) -> _Step:
        seen, counts = self._seen, ~self._needs_reset
        actions = policy.act(torch.from_numpy(seen).to(device)).cpu().numpy()
        raw, rewards, terminated, truncated, infos = self._vector.step(self.spaces.to_environment(actions))
        done = terminated | truncated
        self._look(raw)
        cut = []
        if self.settings.autoreset == "same_step":
            # What is returned is the beginning of the next episode; the end of this one is in the infos. Where the
            # environment ended by itself, nothing comes after it, and what it showed last has no value.
            for index in np.flatnonzero(truncated & ~terminated) if truncated.any() else ():
                last = self.spaces.of_environment(np.asarray(infos["final_obs"][index])[None])
                cut.append((int(index), self._normalised(last)[0]))
        else:
            self._needs_reset = done
        self._count(rewards, done, counts)
        scaled = self._scaled(rewards, done, counts, gamma)
        return _Step(seen, actions, np.where(counts, scaled, 0.0), terminated, done, counts, cut)

    def _look(self, raw: np.ndarray) -> None:
        """Remember what the policy sees next."""
        self._raw = raw
        seen = self.spaces.of_environment(raw)
        if self.observation_moments is not None:
            self.observation_moments.update(seen)
        self._seen = self._normalised(seen)

    def _normalised(self, seen: np.ndarray) -> np.ndarray:
        return normalised(seen, self.observation_moments, clip=self.settings.clip_normalised)

    def _scaled(self, rewards: np.ndarray, done: np.ndarray, counts: np.ndarray, gamma: float) -> np.ndarray:
        if self.return_moments is None:
            return rewards
        self._discounted = self._discounted * gamma + rewards
        self.return_moments.update(self._discounted[counts])
        self._discounted[done] = 0.0
        clip = self.settings.clip_normalised
        return np.clip(rewards / self.return_moments.scale(), -clip, clip)

    def _count(self, rewards: np.ndarray, done: np.ndarray, counts: np.ndarray) -> None:
        self._returns = self._returns + rewards
        self._lengths = self._lengths + counts
        for index in np.flatnonzero(done) if done.any() else ():
            self.recent.append((float(self._returns[index]), int(self._lengths[index])))
            self.finished += 1
            self._returns[index], self._lengths[index] = 0.0, 0

    def _record(self, policy: ActorCritic, steps: Sequence[_Step], device: torch.device) -> ControlEpisodes:
        def column(name: str) -> Tensor:
            # Not `np.stack`, which looks at each of the many small arrays by itself.
            by_step = np.array([getattr(step, name) for step in steps])
            return torch.from_numpy(np.ascontiguousarray(by_step.swapaxes(0, 1))).to(device)

        # All at once: as exact as one by one, and a step of an environment waits for the actor alone.
        observations, actions, mask = column("observations"), column("actions"), column("counts")
        output = policy(observations, actions)
        values = output.values
        last = policy.values(torch.from_numpy(self._seen).to(device))
        # At a step behind which an environment was not reset yet, the next observation is the end of its episode.
        next_values = torch.cat([values[:, 1:], last[:, None]], dim=1)
        places = [(index, number) for number, step in enumerate(steps) for index, _ in step.cut]
        if places:
            ends = torch.from_numpy(np.stack([seen for step in steps for _, seen in step.cut])).to(device)
            rows, numbers = (torch.tensor(column, device=device) for column in zip(*places, strict=True))
            next_values[rows, numbers] = policy.values(ends)
        zero, done, terminated = torch.zeros_like(values), column("done"), column("terminated")
        rewards = column("rewards").to(values.dtype)
        return ControlEpisodes(
            observations=observations,
            actions=actions,
            mask=mask,
            log_probs=torch.where(mask, output.log_probs, zero),
            # There is no reference: the divergence from it is 0 by definition.
            ref_log_probs=torch.where(mask, output.log_probs, zero),
            values=torch.where(mask, values, zero),
            next_values=torch.where(terminated, zero, next_values),
            rewards=rewards,
            advantages=torch.full_like(values, torch.nan),
            returns=torch.full_like(values, torch.nan),
            outcome_rewards=rewards.sum(dim=1),
            truncated=(done & ~terminated).any(dim=1),
            terminated=terminated,
            done=done,
            group=torch.arange(len(mask), device=device),
        )

    # --- checkpoints --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what continues the episodes: numbers and tensors, and for each environment its seed and actions."""
        moments = {"observations": self.observation_moments, "returns": self.return_moments}
        state: dict[str, Any] = {name: found.state_dict() for name, found in moments.items() if found is not None}
        state["recent"] = [list(entry) for entry in self.recent]
        if self._vector is None:  # before the first rollout, or not yet continued
            return {
                **state,
                **{name: (self._saved or {})[name] for name in _OF_EPISODES if name in (self._saved or {})},
            }
        episodes = self._vector.call("episode_state")
        return {
            **state,
            "seed": self.seed,
            "episodes": [int(number) for number, _ in episodes],
            "actions": [torch.from_numpy(np.stack(done)) if len(done) else torch.zeros(0) for _, done in episodes],
            "raw": torch.from_numpy(np.array(self._raw)),
            "returns_so_far": torch.from_numpy(self._returns.copy()),
            "discounted": torch.from_numpy(self._discounted.copy()),
            "lengths": torch.from_numpy(self._lengths.copy()),
            "needs_reset": torch.from_numpy(self._needs_reset.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned; the environments are rebuilt when the next rollout begins.

        Raises:
            UserError: the checkpoint is of another number of environments, or of other settings of normalisation.
        """
        count = len(state.get("episodes", ())) or self.settings.num_envs
        if count != self.settings.num_envs:
            raise UserError(
                f"environment.num_envs: the checkpoint has {count}, and this run has {self.settings.num_envs}; "
                "expected the same"
            )
        for name, moments in (("observations", self.observation_moments), ("returns", self.return_moments)):
            if (name in state) != (moments is not None):
                field = "normalise_rewards" if name == "returns" else "normalise_observations"
                raise UserError(f"environment.{field}: {moments is not None} is not that of the checkpoint")
            if moments is not None:
                moments.load_state_dict(state[name])
        self.close()
        self.recent.clear()
        self.recent.extend((float(value), int(length)) for value, length in state["recent"])
        self._clear_counters()
        self._saved = state

    def _begin(self) -> None:
        if self._vector is not None:
            return
        saved, self._saved = self._saved or {}, None
        # From torch's stream, which is another one on each rank and follows from the seed of the run.
        self.seed = saved["seed"] if "seed" in saved else int(torch.randint(2**31, ()))
        self._vector = make_vector(self.settings, seed=self.seed)
        raw, _ = self._vector.reset()
        if "episodes" in saved and self._rebuild(saved):
            return
        self._clear_counters()
        self._look(raw if "episodes" not in saved else self._vector.reset()[0])

    def _rebuild(self, saved: Mapping[str, Any]) -> bool:
        """Play the episodes of a checkpoint again; return whether the environments are where they were."""
        actions = [list(done.numpy()) for done in saved["actions"]]
        totals = self._vector.call("rebuild", list(zip(saved["episodes"], actions, strict=True)))
        raw, _, terminated, truncated, _ = self._vector.step(self._any_actions())
        waits = saved["needs_reset"].numpy()
        returns = saved["returns_so_far"].numpy()
        is_same = np.array_equal(raw, saved["raw"].numpy()) and np.array_equal(np.where(waits, 0.0, totals), returns)
        if not is_same or not np.array_equal(waits, terminated | truncated):
            warnings.warn(
                f"resume: {self.settings.id} does not repeat an episode from its seed and actions, so its environments "
                "begin new episodes; the resumed run is not the uninterrupted one, bit for bit",
                stacklevel=2,
            )
            return False
        self._returns, self._discounted, self._lengths, self._needs_reset = (
            saved[name].numpy().copy() for name in ("returns_so_far", "discounted", "lengths", "needs_reset")
        )
        self._raw = raw
        # Not `_look`: the checkpoint's moments have counted this observation.
        self._seen = self._normalised(self.spaces.of_environment(raw))
        return True

    def _any_actions(self) -> np.ndarray:
        spec, count = self.spaces.actions, self.settings.num_envs
        return self.spaces.to_environment(np.zeros(count if spec.size is None else (count, spec.size), dtype=np.int64))

    def close(self) -> None:
        """End the environments and their processes; the next rollout rebuilds them, and continues the episodes."""
        if self._vector is None:
            return
        try:
            self._saved = self.state_dict()
        except Exception:  # after an error, an environment may not answer; what it raises can be anything
            self._saved = None
        vector, self._vector = self._vector, None
        # Not politely: a process that hangs in a step would never answer.
        vector.close(terminate=True)


_OF_EPISODES = (
    "seed", "episodes", "actions", "raw", "returns_so_far", "discounted", "lengths", "needs_reset",
)  # fmt: skip
