r"""Whether PPO in environments computes what stable-baselines3's PPO computes, how fast it is, and how it learns.

    pip install stable-baselines3==2.9.*                 # beside this package
    python benchmarks/against_sb3.py --check             # advantages and updates of one shared buffer; seconds
    python benchmarks/against_sb3.py --speed             # CPU seconds of an iteration, turn about in one process
    python benchmarks/against_sb3.py --curves CartPole-v1 --rounds 20 --seeds 5 > curves.jsonl
    python benchmarks/against_sb3.py --compare curves.jsonl                 # whether the curves differ

Both have stable-baselines3's own settings: 2048 steps of one environment, 10 epochs of minibatches of 64, Adam 3e-4,
and networks of 2 x 64 units. For learning curves the return is the mean of the newest 100 episodes, whose actions are
drawn from the policy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from ippo_lightning.algorithms import GAE, ValueLoss
from ippo_lightning.data import ControlDataModule
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.engine.update import run_update
from ippo_lightning.modules import ControlPPOModule, OptimizerSettings
from ippo_lightning.records import ControlEpisodes, UpdatePlan
from ippo_lightning.rollouts import EnvironmentSettings
from ippo_lightning.run.fabric_loop import FabricLoop
from ippo_lightning.run.settings import LoopSettings

GAMMA, LAMBDA, RATE = 0.99, 0.95, 3e-4
SMALL = 1e-3
"""Weight of the critic's loss in the check: a large one would use up the norm of the gradient, and clip no ratio."""
RESAMPLES = 10_000
"""Of the bootstrap."""
NAMES = {
    "actor.0.1": "mlp_extractor.policy_net.0",
    "actor.0.3": "mlp_extractor.policy_net.2",
    "actor.1": "action_net",
    "critic.0.1": "mlp_extractor.value_net.0",
    "critic.0.3": "mlp_extractor.value_net.2",
    "critic.1": "value_net",
}
"""Layers here to those of stable-baselines3."""


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--curves", metavar="ENVIRONMENT")
    parser.add_argument("--compare", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.check:
        for kind in ("CartPole-v1", "Pendulum-v1"):
            print(kind, {name: f"{value:.1e}" for name, value in differences(kind).items()})
    if options.speed:
        print(speed(options.rounds))
    if options.curves:
        for line in curves(options.curves, rounds=options.rounds, seeds=options.seeds):
            print(line)
    if options.compare:
        print(compared(Path(options.compare)))


# --- both systems -----------------------------------------------------------------------------------------------


def sb3(environment: str, *, seed: int, limit: int | None = None, **given: Any) -> Any:
    """Build stable-baselines3's PPO.

    Args:
        environment: its id.
        seed: of everything.
        limit: of an episode; None for that of the environment.
        given: arguments of its PPO.
    """
    from stable_baselines3 import PPO

    extra: dict[str, Any] = {} if limit is None else {"max_episode_steps": limit}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own about the device
        return PPO("MlpPolicy", gymnasium.make(environment, **extra), seed=seed, device="cpu", **given)


def ours(environment: str, folder: str, *, seed: int, **given: Any) -> ControlPPOModule:
    """Build our module, set up by a loop.

    Args:
        environment: its id.
        folder: of the run.
        seed: of everything.
        given: arguments of the module.
    """
    from lightning import Fabric

    torch.manual_seed(seed)
    settings = {
        "update": UpdateSettings(num_epochs=10, max_grad_norm=0.5),
        "optimizer": OptimizerSettings(learning_rate=RATE, epsilon=1e-5),
        **given,
    }
    module = ControlPPOModule(environment=EnvironmentSettings(id=environment), **settings)
    run = LoopSettings(run_dir=folder, progress_bar=False, overwrite=True, test_at_end=False, evaluate_first=False)
    FabricLoop(Fabric(accelerator="cpu", devices=1), module, ControlDataModule(), settings=run, seed=seed).set_up()
    return module


def copy_weights(module: ControlPPOModule, model: Any) -> None:
    """Give our networks the weights of theirs."""
    theirs = model.policy.state_dict()
    own = {f"{mine}.{part}": theirs[f"{name}.{part}"] for mine, name in NAMES.items() for part in ("weight", "bias")}
    if "log_std" in theirs:
        own["log_std.weight"] = theirs["log_std"][None]
    module.policy.load_state_dict(own)


# --- parity -----------------------------------------------------------------------------------------------------


def differences(environment: str, *, steps: int = 256, epochs: int = 10) -> dict[str, float]:
    """Return the largest differences between both, on one buffer of stable-baselines3, divided by the largest number.

    Episodes have at most 20 steps, so that limits cut some. The update goes through the whole buffer at once, because
    the two draw minibatches from different random streams; after the first epoch the ratio is not 1, and some of it is
    clipped.

    Args:
        environment: its id.
        steps: of the buffer.
        epochs: of the update, one step each.
    """
    optimizer = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
    model = sb3(
        environment, seed=1, limit=20, n_steps=steps, batch_size=steps, n_epochs=epochs, learning_rate=0.5,
        gamma=GAMMA, gae_lambda=LAMBDA, policy_kwargs=optimizer, vf_coef=0.5 * SMALL,
    )  # fmt: skip
    _, callback = model._setup_learn(steps)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=steps)
    with tempfile.TemporaryDirectory() as folder:
        module = ours(
            environment, folder, seed=1,
            update=UpdateSettings(num_epochs=epochs, minibatch_size=steps, micro_batch_size=steps, max_grad_norm=0.5),
            optimizer=OptimizerSettings(kind="sgd", learning_rate=0.5),
            value_loss=ValueLoss(coef=SMALL, clip_range=None),
        )  # fmt: skip
        copy_weights(module, model)
        episodes = GAE(gamma=GAMMA, gae_lambda=LAMBDA, whiten=False)(shared_buffer(model))
        buffer = model.rollout_buffer
        found = {
            "advantages": _difference(episodes.advantages[0], buffer.advantages[:, 0]),
            "returns": _difference(episodes.returns[0], buffer.returns[:, 0]),
        }
        rows = episodes.transitions()
        output = module.score(rows, with_values=True)
        assert output.values is not None
        found["log_probs"] = _difference(output.log_probs[:, 0], buffer.log_probs[:, 0])
        found["values"] = _difference(output.values[:, 0], buffer.values[:, 0])
        plan = UpdatePlan(episodes=rows)
        plan.sealed = True
        before = {name: value.clone() for name, value in module.policy.state_dict().items()}
        outcome = run_update(module, plan, module.update_settings)
        model.train()
        found |= _differences_of_updates(module, model, before)
        found["policy_loss"] = abs(
            outcome.metrics["update/policy_loss"] - model.logger.name_to_value["train/policy_gradient_loss"]
        )
        found["clip_fraction"] = outcome.metrics["update/clip_fraction"]
        found["clipped"] = abs(
            outcome.metrics["update/clip_fraction"] - model.logger.name_to_value["train/clip_fraction"]
        )
        return found


def shared_buffer(model: Any) -> ControlEpisodes:
    """Return the buffer of stable-baselines3 as our record, with its limits as limits again.

    stable-baselines3 adds gamma times the value of the last observation to the reward where a limit cuts an episode,
    and then treats the episode as ended. Both give the same advantages, which this shows.
    """
    buffer = model.rollout_buffer

    def column(values: np.ndarray) -> Tensor:
        return torch.as_tensor(np.array(values)).squeeze(1)[None]

    values = column(buffer.values)
    with torch.no_grad():
        last = model.policy.predict_values(torch.as_tensor(model._last_obs))
    next_values = torch.cat([values[:, 1:], last.reshape(1, 1)], dim=1)
    starts = np.append(buffer.episode_starts[1:, 0], model._last_episode_starts)
    done = torch.as_tensor(starts).bool()[None]
    rewards, is_cut = column(buffer.rewards), torch.zeros_like(done)
    if model.env.envs[0].spec.id.startswith("CartPole"):  # its own reward is 1, so the rest is the value
        is_cut = done & (rewards != 1.0)
        next_values = torch.where(is_cut, (rewards - 1.0) / GAMMA, next_values)
        rewards = torch.where(is_cut, torch.ones_like(rewards), rewards)
    actions = torch.as_tensor(buffer.actions).transpose(0, 1)
    nothing = torch.zeros_like(values)
    return ControlEpisodes(
        observations=torch.as_tensor(buffer.observations).transpose(0, 1),
        actions=actions.squeeze(-1).long() if values.shape == actions.shape[:2] and actions.shape[-1] == 1
        and model.policy.action_dist.__class__.__name__.startswith("Cat") else actions,
        mask=torch.ones_like(done),
        log_probs=column(buffer.log_probs),
        ref_log_probs=column(buffer.log_probs),
        values=values,
        next_values=next_values,
        rewards=rewards,
        advantages=nothing,
        returns=nothing,
        outcome_rewards=rewards.sum(1),
        truncated=is_cut.any(1),
        terminated=done & ~is_cut,
        done=done,
        group=torch.zeros(1, dtype=torch.long),
    )  # fmt: skip


def _differences_of_updates(module: ControlPPOModule, model: Any, before: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest difference of a weight, and how far the update moved the weights at most."""
    own = {name: value.clone() for name, value in module.policy.state_dict().items()}
    copy_weights(module, model)
    theirs = module.policy.state_dict()
    return {
        "weights": max(float((own[name] - theirs[name]).abs().max()) for name in own),
        "moved": max(float((own[name] - before[name]).abs().max()) for name in own),
    }


def _difference(mine: Tensor, theirs: np.ndarray) -> float:
    other = torch.as_tensor(theirs)
    return float((mine.detach() - other).abs().max() / other.abs().max())


# --- speed and learning curves ----------------------------------------------------------------------------------


def speed(rounds: int, environment: str = "CartPole-v1") -> dict[str, float]:
    """Return the median CPU seconds of an iteration of both on one thread, and the ratio, ours by theirs.

    CPU seconds, because the load of the machine would change from one turn to the next. It changes CPU seconds, too,
    by what other processes leave of the caches. So each turn has a ratio of its own; `ratio` is their median, between
    `low` and `high`, its interval of 95 % by the bootstrap.

    Args:
        rounds: of both, turn about; one more warms up.
        environment: its id.
    """
    model = sb3(environment, seed=1)
    taken: dict[str, list[float]] = {"sb3": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        module = ours(environment, folder, seed=1)
        for number in range(rounds + 1):
            start = time.process_time()
            model.learn(2048, reset_num_timesteps=False)
            middle = time.process_time()
            module.training_step({"rollouts": 1}, number)
            taken["sb3"].append(middle - start)
            taken["ours"].append(time.process_time() - middle)
    medians = {name: statistics.median(values[1:]) for name, values in taken.items()}
    ratios = np.array(taken["ours"][1:]) / np.array(taken["sb3"][1:])
    drawn = np.random.default_rng(0).choice(ratios, size=(RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return {**medians, "ratio": float(np.median(ratios)), "low": float(low), "high": float(high)}


def curves(environment: str, *, rounds: int, seeds: int) -> list[str]:
    """Return one line of JSON per system and seed, with the return after each round of 2048 steps.

    Args:
        environment: its id.
        rounds: of each run.
        seeds: 1 to this number.
    """
    lines = []
    for seed in range(1, seeds + 1):
        model = sb3(environment, seed=seed)
        theirs = []
        for _ in range(rounds):
            model.learn(2048, reset_num_timesteps=False)
            theirs.append(statistics.fmean(episode["r"] for episode in model.ep_info_buffer))
        with tempfile.TemporaryDirectory() as folder:
            module = ours(environment, folder, seed=seed)
            steps = [module.training_step({"rollouts": 1}, number) for number in range(rounds)]
        mine = [numbers["rollout/episode_return"] for numbers in steps]
        for system, found in (("sb3", theirs), ("ours", mine)):
            lines.append(json.dumps({"system": system, "seed": seed, "returns": [round(one, 2) for one in found]}))
    return lines


def compared(path: Path) -> dict[str, list[float]]:
    """Return, for the mean over all rounds and for the last round, ours minus theirs: difference and 95 % interval.

    Args:
        path: of lines that `curves` returned. The interval is Welch's, over seeds: no seed of one is one of the other.
    """
    from scipy import stats

    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = {}
    for name, number in (("all rounds", statistics.fmean), ("last round", lambda returns: returns[-1])):
        mine, theirs = ([number(run["returns"]) for run in runs if run["system"] == one] for one in ("ours", "sb3"))
        test = stats.ttest_ind(mine, theirs, equal_var=False)
        low, high = test.confidence_interval(0.95)
        found[name] = [round(float(one), 2) for one in (statistics.fmean(mine) - statistics.fmean(theirs), low, high)]
    return found


if __name__ == "__main__":
    main()
