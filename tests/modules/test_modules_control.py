"""PPO in environments: its losses are the textbook's, it learns, and an interrupted run is the uninterrupted one."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Fabric, Trainer
from safetensors.torch import load_file
from small_environments import register

from ippo_lightning import ControlPPOModule, FabricLoop
from ippo_lightning.algorithms import GAE, GroupBaseline
from ippo_lightning.callbacks import CompletionsTable, EpisodeLog, InfluenceFilter
from ippo_lightning.data import ControlDataModule, TextDataModule
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.errors import UserError
from ippo_lightning.modules import OptimizerSettings
from ippo_lightning.policies import CNN, MLP
from ippo_lightning.records import ControlEpisodes, Minibatch, UpdatePlan
from ippo_lightning.rollouts import EnvironmentSettings
from ippo_lightning.run.settings import LoopSettings
from ippo_lightning.selection import ReturnOfBuffer
from ippo_lightning.storage.run_folder import HISTORY, RunFolder

register()
EXACT = {"rtol": 0, "atol": 0}


def module_of(
    name: str = "CartPole-v1", *, environment: dict[str, Any] | None = None, **given: Any
) -> ControlPPOModule:
    torch.manual_seed(0)
    settings = {
        "policy": MLP(hidden=[16]),
        "num_steps": 64,
        "update": UpdateSettings(num_epochs=2, minibatch_size=32),
        "optimizer": OptimizerSettings(kind="sgd", learning_rate=5e-3),
        **given,
    }
    chosen = EnvironmentSettings(**{"id": name, "num_envs": 2, **(environment or {})})
    return ControlPPOModule(environment=chosen, **settings)


def loop_of(
    folder: Path, module: ControlPPOModule, *, callbacks: tuple[Callback, ...] = (), **given: Any
) -> FabricLoop:
    settings = {"max_iterations": 4, "evaluate_every_n_iterations": 2, "progress_bar": False, **given}
    return FabricLoop(
        Fabric(accelerator="cpu", devices=1),
        module,
        ControlDataModule(evaluation_episodes=3, test_episodes=2),
        callbacks=callbacks,
        settings=LoopSettings(run_dir=str(folder), **settings),
        seed=3,
    )


def sampled(module: ControlPPOModule) -> ControlEpisodes:
    torch.manual_seed(4)
    return module.compute_advantages(module.rollout(module.plan_rollout({"rollouts": 1})))


# --- losses ---------------------------------------------------------------------------------------------------------


def minibatch_of(episodes: ControlEpisodes, weights: torch.Tensor) -> Minibatch:
    rows = float((weights > 0).sum())
    ones = torch.ones_like(weights)
    return Minibatch(
        episodes=episodes,
        weights=weights,
        value_weights=ones,
        policy_denominator=max(rows, 1.0),
        value_denominator=float(len(weights)),
    )


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_the_loss_is_the_clipped_surrogate_of_advantages_normalised_in_the_minibatch(name: str) -> None:
    module = module_of(name, entropy_coef=0.01)
    episodes = sampled(module)
    with torch.no_grad():
        for parameter in module.policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    loss, sums = module.minibatch_loss(minibatch_of(episodes, torch.ones(len(episodes))))
    output = module.policy(episodes.observations, episodes.actions)
    advantages = (episodes.advantages - episodes.advantages.mean()) / (episodes.advantages.std() + 1e-8)
    ratio = (output.log_probs - episodes.log_probs).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
    value_loss = torch.nn.functional.mse_loss(output.values, episodes.returns)
    torch.testing.assert_close(loss, -surrogate + 0.5 * value_loss - 0.01 * output.entropy.mean())
    assert float(sums["clipped_tokens"]) > 0


def test_dropped_rows_do_not_move_the_normalised_advantages_of_the_others() -> None:
    module = module_of()
    episodes = sampled(module)
    weights = (torch.arange(len(episodes)) % 2).float()
    noisy = episodes.evolve(advantages=torch.where(weights[:, None] > 0, episodes.advantages, 1e3))
    first, second = (module.minibatch_loss(minibatch_of(rows, weights))[1] for rows in (episodes, noisy))
    torch.testing.assert_close(first["policy_loss"], second["policy_loss"])


@pytest.mark.parametrize("kept", [0, 1])
def test_a_minibatch_of_one_row_or_none_has_a_finite_loss(kept: int) -> None:
    module = module_of()
    episodes = sampled(module)
    loss, _ = module.minibatch_loss(minibatch_of(episodes, (torch.arange(len(episodes)) < kept).float()))
    assert bool(torch.isfinite(loss))


def test_the_ratio_is_one_before_the_first_step() -> None:
    module = module_of()
    episodes = sampled(module)
    torch.testing.assert_close(module.score(episodes).log_probs, episodes.log_probs)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_scores_are_inner_products_of_plain_gradients(name: str) -> None:
    module = module_of(name)
    episodes = sampled(module)
    plan = UpdatePlan(episodes=episodes)
    InfluenceFilter(target=ReturnOfBuffer(), power=0).on_rollout_end(None, module, plan)
    parameters = [p for key, p in module.policy.named_parameters() if not key.startswith("critic")]
    log_probs = module.policy(episodes.observations, episodes.actions).log_probs
    target = torch.autograd.grad(-(episodes.advantages * log_probs).mean(), parameters, retain_graph=True)
    spread = (episodes.advantages - episodes.advantages.mean()) / episodes.advantages.std(unbiased=False)
    expected = []
    for row in range(len(episodes)):
        own = torch.autograd.grad(-(spread[row, 0] * log_probs[row, 0]), parameters, retain_graph=True)
        expected.append(sum(float((a * b).sum()) for a, b in zip(own, target, strict=True)))
    scores = plan.history[0].scores
    assert scores is not None
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-3, atol=1e-5 * float(scores.abs().max()))
    assert 0 < int(plan.keep.sum()) < len(episodes)


def repeatable(row: dict[str, Any]) -> dict[str, str]:
    """The numbers of an iteration that do not depend on the machine."""
    kept = {key: repr(value) for key, value in row.items() if key.partition("/")[0] not in ("time", "memory")}
    return {key: value for key, value in kept.items() if key != "max_iterations"}


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cartpole_learns(tmp_path: Path) -> None:
    update = UpdateSettings(num_epochs=6, minibatch_size=64, max_grad_norm=0.5)
    optimizer = OptimizerSettings(learning_rate=1e-3, epsilon=1e-5)
    module = module_of(environment={"num_envs": 4}, num_steps=256, update=update, policy=MLP(), optimizer=optimizer)
    loop = loop_of(tmp_path, module, max_iterations=8, evaluate_every_n_iterations=0, test_at_end=True)
    results = loop.fit()
    history = RunFolder(tmp_path).read_rows(HISTORY)
    assert history[0]["rollout/episode_return"] < 40
    assert history[-1]["rollout/episode_return"] > 50
    assert results["episode_return"] == results["episode_length"]
    assert history[-1]["progress/environment_steps"] == 8 * 4 * 256
    assert history[-1]["rollout/nonfinite_episodes"] == 0
    weights = load_file(loop.folder.model / "policy.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in module.policy.state_dict().items())


ENVIRONMENTS = [
    ("CartPole-v1", {}, {}),
    ("CartPole-v1", {"autoreset": "next_step", "normalise_observations": True, "normalise_rewards": True}, {}),
    ("CartPole-v1", {"vectorization": "async"}, {"optimizer": OptimizerSettings(learning_rate=1e-3)}),
    ("FrozenLake-v1", {}, {}),
    ("Acrobot-v1", {}, {}),
    ("Pendulum-v1", {}, {}),
    *(
        pytest.param(name, given, more, marks=pytest.mark.skipif(find_spec(needed) is None, reason=f"needs {needed}"))
        for name, given, more, needed in [
            ("LunarLander-v3", {}, {}, "Box2D"),
            ("BipedalWalker-v3", {}, {}, "Box2D"),
            ("MiniGrid-Empty-8x8-v0", {"wrappers": ["ImgObsWrapper"]}, {"policy": CNN()}, "minigrid"),
        ]
    ),
]


@pytest.mark.filterwarnings("error:resume")
@pytest.mark.parametrize(("name", "environment", "given"), ENVIRONMENTS)
def test_an_interrupted_run_is_the_uninterrupted_one(
    name: str, environment: dict[str, Any], given: dict[str, Any], tmp_path: Path
) -> None:
    def run(folder: Path, callbacks: tuple[Callback, ...] = (), **settings: Any) -> ControlPPOModule:
        module = module_of(name, environment=environment, **given)
        quick = {"evaluate_first": False, "evaluate_every_n_iterations": 0, "test_at_end": False, **settings}
        filters = (InfluenceFilter(target=ReturnOfBuffer(), power=0),)
        loop_of(folder, module, callbacks=filters, **quick).fit()
        return module

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", max_iterations=2)
    parts = run(tmp_path / "parts", resume=True)
    for (key, first), second in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(first, second, **EXACT, msg=key)
    first_rows, second_rows = (RunFolder(tmp_path / part).read_rows(HISTORY) for part in ("whole", "parts"))
    assert [repeatable(row) for row in first_rows] == [repeatable(row) for row in second_rows]


def test_lightnings_trainer_runs_resumes_and_evaluates_it(tmp_path: Path) -> None:
    def trainer(epochs: int) -> Trainer:
        return Trainer(
            accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path, num_sanity_val_steps=0,
        )  # fmt: skip

    data = ControlDataModule(evaluation_episodes=2, test_episodes=2)
    torch.manual_seed(9)
    whole = module_of()
    torch.manual_seed(9)
    run = trainer(3)
    run.fit(whole, datamodule=data)
    assert {"eval/episode_return", "eval/episode_length"} <= run.callback_metrics.keys()
    assert run.test(whole, datamodule=data, verbose=False)[0]["test/episode_return"] > 0
    first, second = module_of(), module_of()
    torch.manual_seed(9)
    run = trainer(2)
    run.fit(first, datamodule=data)
    run.save_checkpoint(tmp_path / "half.ckpt")
    trainer(3).fit(second, datamodule=data, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, **EXACT, msg=name)


def test_an_evaluation_does_not_move_training(tmp_path: Path) -> None:
    found = []
    for every in (0, 1):
        module = module_of()
        loop_of(tmp_path / str(every), module, evaluate_every_n_iterations=every, evaluate_first=every > 0).fit()
        found.append(module.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_reward_that_is_not_finite_stops_the_run_and_names_the_environment(tmp_path: Path) -> None:
    class Broken(ControlPPOModule):
        def compute_rewards(self, episodes: ControlEpisodes) -> ControlEpisodes:
            return episodes.evolve(rewards=episodes.rewards / 0)

    torch.manual_seed(0)
    module = Broken(environment=EnvironmentSettings(id="CartPole-v1"), num_steps=8)
    with pytest.raises(FloatingPointError, match=r"rewards of row 0 \(environment 0\)"):
        loop_of(tmp_path, module, evaluate_first=False).fit()


def test_the_critic_of_an_environment_learns_alone_at_first(tmp_path: Path) -> None:
    update = UpdateSettings(num_epochs=1, minibatch_size=32, critic_warmup_iterations=1)
    module = module_of(update=update)
    start = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for iterations in (1, 2):
        loop_of(tmp_path, module, max_iterations=iterations, evaluate_first=False, resume=iterations > 1).fit()
        moved = {name for name, parameter in module.named_parameters() if not torch.equal(parameter, start[name])}
        assert {name.split(".")[1] for name in moved} == ({"critic"} if iterations == 1 else {"actor", "critic"})


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_steps": 0}, "model.num_steps: 0 is out of range"),
        ({"normalise_advantages": "always"}, "model.normalise_advantages: 'always' is unknown"),
        ({"update": UpdateSettings(minibatch_size=64, micro_batch_size=16)}, "update.micro_batch_size: 16 cuts"),
        ({"update": UpdateSettings(minibatch_size=64, max_tokens=32)}, "update.max_tokens: 32 cuts minibatches"),
        ({"advantages": GroupBaseline()}, "GroupBaseline reads no values"),
        ({"policy": CNN()}, "CNN reads images of bytes"),
    ],
)
def test_a_wrong_setting_is_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        module_of(**given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_micro_batches_are_allowed_without_normalisation() -> None:
    update = UpdateSettings(minibatch_size=64, micro_batch_size=16)
    module_of(update=update, normalise_advantages="none", advantages=GAE(gamma=0.99))


def test_texts_are_no_data_of_an_environment() -> None:
    with pytest.raises(UserError, match="TextDataModule is not for environments"):
        module_of().use_data(TextDataModule.__new__(TextDataModule))


@pytest.mark.parametrize("callback", [EpisodeLog, CompletionsTable])
def test_a_callback_that_writes_texts_is_refused_before_the_first_iteration(
    callback: type[Callback], tmp_path: Path
) -> None:
    expected = f"^callbacks: {callback.__name__} writes prompts and responses, and ControlPPOModule has none; leave it"
    with pytest.raises(UserError, match=expected):
        loop_of(tmp_path / "run", module_of(), callbacks=(callback(),)).fit()
    assert not (tmp_path / "run" / HISTORY).exists()


def test_results_count_episodes_and_not_prompts(tmp_path: Path) -> None:
    loop = loop_of(tmp_path / "run", module_of())
    loop.num_prompts = 2
    assert loop.describe_evaluation({})["num_episodes"] == 2
    assert "num_prompts" not in loop.describe_evaluation({})
