"""Environments of gymnasium by their id: settings, construction, and what networks need to know of them."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import math
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ippo_lightning.errors import UserError, require_choice, require_range
from ippo_lightning.policies import ActionSpec, ObservationSpec

if TYPE_CHECKING:
    import gymnasium

Vectorization = Literal["sync", "async"]
Autoreset = Literal["same_step", "next_step"]
_PACKAGES = {"MiniGrid": "minigrid", "BabyAI": "minigrid", "highway": "highway_env"}
"""Beginning of an id to the package that registers it when it is imported."""
_WRAPPERS = ("gymnasium.wrappers", "minigrid.wrappers")


@dataclass(frozen=True, kw_only=True)
class EnvironmentSettings:
    """Which environment, how many of it, and what happens to its numbers.

    Args:
        id: as registered with gymnasium, for example `CartPole-v1`.
        num_envs: environments on each rank.
        vectorization: `sync` steps them one after the other, `async` each in a process of its own.
        autoreset: when an episode that is over begins again: in the `same_step`, or in the `next_step`, which then
            only resets and is no record.
        max_episode_steps: limit of an episode; null for that of the id.
        options: arguments of the environment.
        wrappers: names from `gymnasium.wrappers` or `minigrid.wrappers`, the innermost first.
        normalise_observations: to mean 0 and variance 1 of all observations so far.
        normalise_rewards: divide them by the standard deviation of the discounted return so far.
        clip_normalised: largest absolute value of what is normalised, > 0.

    Raises:
        UserError: a number out of its range, an unknown word, or an id that names code.
    """

    id: str
    num_envs: int = 1
    vectorization: Vectorization = "sync"
    autoreset: Autoreset = "same_step"
    max_episode_steps: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    wrappers: list[str] = field(default_factory=list)
    normalise_observations: bool = False
    normalise_rewards: bool = False
    clip_normalised: float = 10.0

    def __post_init__(self) -> None:
        # gymnasium imports what stands before a colon; a configuration of somebody else could name any module.
        if ":" in self.id:
            raise UserError(
                f"environment.id: {self.id} names a module; expected an id alone, of an environment that is registered"
            )
        require_range("environment.num_envs", self.num_envs, at_least=1, integer=True)
        require_choice("environment.vectorization", self.vectorization, get_args(Vectorization))
        require_choice("environment.autoreset", self.autoreset, get_args(Autoreset))
        require_range("environment.clip_normalised", self.clip_normalised, above=0)
        if self.max_episode_steps is not None:
            require_range("environment.max_episode_steps", self.max_episode_steps, at_least=1, integer=True)


@dataclass(frozen=True, kw_only=True)
class Spaces:
    """What goes in and out of an environment."""

    observations: ObservationSpec
    actions: ActionSpec
    first_observation: int
    """What is subtracted from an observation that is a number from a list."""
    first_action: int
    """What is added to an action that is a number from a list."""
    low: np.ndarray | None
    """Lower bounds of an action that is a vector."""
    high: np.ndarray | None
    """Upper bounds of an action that is a vector."""
    action_shape: tuple[int, ...]
    """Of an action that is a vector, which the policy knows as flat."""

    def to_environment(self, actions: np.ndarray) -> np.ndarray:
        """Return a policy's actions, [rows] or [rows, size], as the environments take them."""
        if self.low is None:
            return actions + self.first_action
        shaped = actions.reshape(len(actions), *self.action_shape)
        return np.clip(shaped, self.low, self.high)

    def of_environment(self, observations: np.ndarray) -> np.ndarray:
        """Return observations as the policy takes them: bytes of an image, numbers from 0 on, or float32."""
        if self.observations.num_values is not None:
            return observations - self.first_observation
        return observations if self.observations.is_image else observations.astype(np.float32, copy=False)


def make_environment(settings: EnvironmentSettings, *, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """Return one environment.

    Args:
        settings: of the run.
        render_mode: of gymnasium, for pictures.

    Raises:
        UserError: gymnasium or the environment's package is not installed, the id is not registered, an option or a
            wrapper is wrong.
    """
    import_packages(settings.id)
    import gymnasium

    given = {"max_episode_steps": settings.max_episode_steps, "render_mode": render_mode}
    extra: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    try:
        # The checker warns about environments that work, and costs time at each first step.
        environment = gymnasium.make(settings.id, disable_env_checker=True, **extra, **settings.options)
    except gymnasium.error.Error as error:
        raise UserError(_not_made(settings.id, error)) from error
    except (TypeError, ValueError, KeyError) as error:
        message = " ".join(str(error).split())[:160]
        raise UserError(f"environment.options: {settings.id} refuses {settings.options} ({message})") from error
    for name in settings.wrappers:
        environment = _wrapper(name)(environment)
    return environment


def import_packages(name: str) -> None:
    """Import the packages that register an environment.

    Args:
        name: id of the environment.

    Raises:
        UserError: it is not installed.
    """
    package = _PACKAGES.get(name.partition("-")[0])
    for needed in ("gymnasium", package):
        if needed is None:
            continue
        if importlib.util.find_spec(needed) is None:
            raise UserError(
                f"environment.id: {name} needs the package {needed}, which is not installed; "
                "use `pip install 'ippo-lightning[control]'`"
            )
        importlib.import_module(needed)


def make_vector(
    settings: EnvironmentSettings, *, seed: int, episode_seeds: Sequence[Sequence[int]] = ()
) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    """Return the environments of this rank, each with a seed per episode; `reset` them first.

    Args:
        settings: of the run.
        seed: of this rank.
        episode_seeds: of each environment, see `SeededEpisodes`; empty for `num_envs` that follow from `seed`.

    Raises:
        UserError: see `make_environment`.
    """
    make_environment(settings).close()  # what is wrong is said here and not in another process
    from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

    given = episode_seeds or [()] * settings.num_envs
    makers = [partial(_seeded, settings, seed, index, own, os.getpid()) for index, own in enumerate(given)]
    mode = AutoresetMode.SAME_STEP if settings.autoreset == "same_step" else AutoresetMode.NEXT_STEP
    kind = AsyncVectorEnv if settings.vectorization == "async" else SyncVectorEnv
    return kind(makers, autoreset_mode=mode)


def _seeded(
    settings: EnvironmentSettings, seed: int, index: int, episode_seeds: Sequence[int], maker: int
) -> gymnasium.Env[Any, Any]:
    if os.getpid() != maker:
        # A process of an environment is a copy of that of the run, also in what it does on a signal, which is to go on
        # to the end of the iteration. gymnasium ends it by SIGTERM; Ctrl-C is for the run alone.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Here and not above: the class needs gymnasium, which is an extra.
    from ippo_lightning.rollouts.seeded_episodes import SeededEpisodes

    return SeededEpisodes(make_environment(settings), seed=seed, index=index, episode_seeds=episode_seeds)


def spaces_of(settings: EnvironmentSettings) -> Spaces:
    """Return what goes in and out of an environment.

    Args:
        settings: of the run.

    Raises:
        UserError: see `make_environment`; or a space that no policy here can read.
    """
    environment = make_environment(settings)
    from gymnasium.spaces import Box, Discrete

    seen, done = environment.observation_space, environment.action_space
    environment.close()
    if not isinstance(seen, (Box, Discrete)):
        raise UserError(
            f"environment.wrappers: an observation of {settings.id} is a {type(seen).__name__}; expected a Box or "
            f"Discrete, for example by {'ImgObsWrapper' if 'MiniGrid' in settings.id else 'FlattenObservation'}"
        )
    if not isinstance(done, (Box, Discrete)):
        raise UserError(
            f"environment.id: an action of {settings.id} is a {type(done).__name__}; expected a Box or Discrete"
        )
    is_image = isinstance(seen, Box) and seen.dtype == np.uint8 and len(seen.shape) == 3
    if settings.normalise_observations and (is_image or isinstance(seen, Discrete)):
        raise UserError(
            f"environment.normalise_observations: true, and an observation of {settings.id} is "
            f"{'an image' if is_image else 'a number from a list'}; set it to false"
        )
    return Spaces(
        observations=ObservationSpec(
            shape=tuple(seen.shape or ()),
            num_values=int(seen.n) if isinstance(seen, Discrete) else None,
            is_image=is_image,
        ),
        actions=ActionSpec(num_actions=int(done.n))
        if isinstance(done, Discrete)
        else ActionSpec(size=math.prod(done.shape)),
        first_observation=int(seen.start) if isinstance(seen, Discrete) else 0,
        first_action=int(done.start) if isinstance(done, Discrete) else 0,
        low=done.low if isinstance(done, Box) else None,
        high=done.high if isinstance(done, Box) else None,
        action_shape=tuple(done.shape or ()),
    )


def _not_made(name: str, error: Exception) -> str:
    import gymnasium

    known = sorted(gymnasium.registry)
    message = " ".join(str(error).split())
    if isinstance(error, gymnasium.error.DependencyNotInstalled):
        needed = f"environment.id: {name} needs a package that is not installed ({message[:120]})"
        return f"{needed}; use `pip install 'ippo-lightning[control]'`"
    # An old version first: its newest one is meant.
    stem = name.rpartition("-v")[0]
    versions = [other for other in known if stem and other.rpartition("-v")[0] == stem]
    near = versions[-1:] or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'?" if near else "expected an id of gymnasium, for example CartPole-v1"
    return f"environment.id: '{name}' is not registered with gymnasium; {hint}"


def _wrapper(name: str) -> Any:
    known: dict[str, Any] = {}
    for place in _WRAPPERS:
        if importlib.util.find_spec(place.partition(".")[0]) is None:
            continue
        module = importlib.import_module(place)
        known |= {key: value for key, value in vars(module).items() if isinstance(value, type) and key[0].isupper()}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'?" if near else f"expected a class of {' or '.join(_WRAPPERS)}"
    raise UserError(f"environment.wrappers: '{name}' is unknown; {hint}")


def reward_threshold(settings: EnvironmentSettings) -> float | None:
    """Return the mean return at which gymnasium calls an environment solved; None if it has no such number.

    Args:
        settings: of an environment that was made. With options or wrappers, it may have other rewards than its id.
    """
    import gymnasium

    spec = gymnasium.registry.get(settings.id)
    if spec is None or spec.reward_threshold is None or settings.wrappers:
        return None
    return float(spec.reward_threshold)
