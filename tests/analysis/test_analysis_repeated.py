"""A kept iteration is trained again as the run trained it, bit for bit, and otherwise if the weights are others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Fabric
from training_parts import tiny_loop, tiny_module

from ippo_lightning import ControlPPOModule, FabricLoop
from ippo_lightning.algorithms import ClippedLoss
from ippo_lightning.analysis import RepeatedRounds, kept_rounds, read_round
from ippo_lightning.callbacks import EpisodeLog, InfluenceFilter
from ippo_lightning.data import ControlDataModule
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.errors import UserError
from ippo_lightning.modules import OptimizerSettings
from ippo_lightning.policies import MLP
from ippo_lightning.rollouts import EnvironmentSettings
from ippo_lightning.run.settings import LoopSettings
from ippo_lightning.selection import DropNegatives, ReturnOfBuffer
from ippo_lightning.storage.iteration_files import buffer_path
from ippo_lightning.storage.run_folder import CONFIG


def control_loop(folder: Path, *, kind: str = "sgd", callbacks: Any = ()) -> FabricLoop:
    torch.manual_seed(0)
    module = ControlPPOModule(
        environment=EnvironmentSettings(id="CartPole-v1", num_envs=2, normalise_observations=True),
        policy=MLP(hidden=[8]),
        num_steps=32,
        update=UpdateSettings(num_epochs=2, minibatch_size=16),
        optimizer=OptimizerSettings(kind=kind, learning_rate=1e-2),
    )
    settings = LoopSettings(run_dir=str(folder), max_iterations=3, progress_bar=False)
    data = ControlDataModule(evaluation_episodes=2, test_episodes=2)
    return FabricLoop(
        Fabric(accelerator="cpu", devices=1), module, data, callbacks=callbacks, settings=settings, seed=3
    )


def text_loop(folder: Path, *, kind: str = "adamw", callbacks: Any = ()) -> FabricLoop:
    torch.manual_seed(0)
    module = tiny_module(loss=ClippedLoss(), update={"num_epochs": 2}, optimizer=OptimizerSettings(kind=kind))
    return tiny_loop(folder, module, callbacks=callbacks, max_iterations=3)


@pytest.fixture(
    scope="module",
    params=[(control_loop, "sgd"), (control_loop, "adamw"), (text_loop, "adamw")],
    ids=["sgd", "adamw", "text"],
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run of three iterations, filtered and kept, and what builds its loop again."""
    make, kind = request.param
    folder = tmp_path_factory.mktemp("run")
    target = {"target": ReturnOfBuffer()} if make is control_loop else {}
    callbacks = [EpisodeLog(keep_buffers=True), InfluenceFilter(rule=DropNegatives(fraction=0.5), **target)]
    make(folder, kind=kind, callbacks=callbacks).fit()
    return folder, lambda: make(folder.parent / "again", kind=kind)


def parameters(rounds: RepeatedRounds) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in rounds.module.trained_parameters().items()}


def test_the_update_with_the_weights_of_the_run_gives_its_parameters_bit_for_bit(run: tuple[Path, Any]) -> None:
    folder, build = run
    assert kept_rounds(folder) == [0, 1, 2]
    rounds = RepeatedRounds(build(), read_round(folder, 2))
    for number in (1, 0):  # in any order
        rounds.train(read_round(folder, number))
        after = read_round(folder, number + 1).parameters
        assert all(torch.equal(value, after[name]) for name, value in parameters(rounds).items())
    rounds.module.close()


def test_other_weights_or_another_order_give_other_parameters_and_the_same_call_the_same(run: tuple[Path, Any]) -> None:
    folder, build = run
    first = read_round(folder, 1)
    rounds = RepeatedRounds(build(), first)
    found = []
    state = torch.get_rng_state()
    for given in ({}, {"weights": torch.ones(len(first.episodes))}, {"seed": 7}, {"seed": 7}):
        rounds.train(first, **given)
        found.append(torch.cat([value.flatten() for value in parameters(rounds).values()]))
    assert torch.equal(found[2], found[3])
    assert not any(torch.equal(found[0], other) for other in found[1:3])
    assert torch.equal(torch.get_rng_state(), state)
    rounds.module.close()


def test_scores_see_the_advantages_as_the_run_normalised_them(tmp_path: Path) -> None:
    control_loop(tmp_path, callbacks=[EpisodeLog(keep_buffers=True)]).fit()
    found = read_round(tmp_path, 1)
    rounds = RepeatedRounds(control_loop(tmp_path / "again"), found)
    rounds.begin(found)
    losses = rounds.module.episode_losses(found.episodes)
    advantages = found.episodes.advantages.double()
    unit = (advantages - advantages.mean()) / advantages.std(correction=0)
    assert torch.allclose(losses.double(), -unit.flatten(), atol=1e-5)
    rounds.module.close()


def test_what_was_not_kept_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        kept_rounds(tmp_path)
    (tmp_path / CONFIG).touch()
    with pytest.raises(UserError, match="keep_buffers: true"):
        kept_rounds(tmp_path)
    control_loop(tmp_path / "run", callbacks=[EpisodeLog(keep_buffers=True, every_n_iterations=2)]).fit()
    with pytest.raises(UserError, match=r"iteration: 1 was not kept; .* has 0, 2"):
        read_round(tmp_path / "run", 1)
    path = buffer_path(tmp_path / "run", iteration=2, rank=0)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        read_round(tmp_path / "run", 2)


def test_a_run_of_another_model_is_refused(tmp_path: Path) -> None:
    control_loop(tmp_path / "run", callbacks=[EpisodeLog(keep_buffers=True)]).fit()
    with pytest.raises(UserError, match="of another model"):
        RepeatedRounds(text_loop(tmp_path / "text"), read_round(tmp_path / "run", 0))


def test_a_log_that_would_write_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"EpisodeLog\.file_name: null"):
        EpisodeLog(file_name=None)


def test_a_module_whose_update_cannot_be_repeated_is_refused() -> None:
    with pytest.raises(UserError, match="keep_buffers: Linear has no trained_parameters"):
        EpisodeLog(keep_buffers=True).setup(None, torch.nn.Linear(1, 1), "fit")  # type: ignore[arg-type]


def test_a_filter_of_minibatches_is_refused_because_no_buffer_keeps_its_weights(tmp_path: Path) -> None:
    callbacks = [EpisodeLog(keep_buffers=True), InfluenceFilter(target=ReturnOfBuffer(), score_at="minibatch")]
    with pytest.raises(UserError, match=r"EpisodeLog\.keep_buffers: InfluenceFilter decides about each minibatch"):
        control_loop(tmp_path, callbacks=callbacks).fit()


@pytest.mark.parametrize("name", ["optimizer", "progress", "random"])
def test_a_state_of_another_kind_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    control_loop(tmp_path, callbacks=[EpisodeLog(keep_buffers=True)]).fit()
    found = replace(read_round(tmp_path, 0), **{name: {}})
    rounds = RepeatedRounds(control_loop(tmp_path / "again"), found)
    with pytest.raises(UserError, match="buffer: iteration 0 has no usable"):
        rounds.train(found)
    rounds.module.close()
