"""A run shows what its policy does, and is bit for bit what it is without."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Fabric, Trainer, seed_everything
from PIL import Image
from small_environments import register
from training_parts import tiny_loop, tiny_module

from ippo_lightning import ControlPPOModule, FabricLoop
from ippo_lightning.callbacks import EpisodeFrames, EpisodeLog
from ippo_lightning.callbacks.episode_frames import animated
from ippo_lightning.data import ControlDataModule
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.errors import UserError
from ippo_lightning.policies import MLP
from ippo_lightning.records import RenderedEpisode
from ippo_lightning.rollouts import EnvironmentSettings
from ippo_lightning.run.settings import LoopSettings
from ippo_lightning.storage.run_folder import HISTORY, MOST_FRAMES, MOST_PIXELS, RESULTS, RunFolder

register()


def module_of(name: str) -> ControlPPOModule:
    torch.manual_seed(0)
    update = UpdateSettings(num_epochs=1, minibatch_size=16)
    environment = EnvironmentSettings(id=name, num_envs=2, normalise_observations=True)
    return ControlPPOModule(environment=environment, policy=MLP(hidden=[8]), num_steps=16, update=update)


def run(folder: Path, *callbacks: Callback, name: str = "Painted-v0", **given: Any) -> ControlPPOModule:
    module = module_of(name)
    settings = LoopSettings(run_dir=str(folder), **{"max_iterations": 3, "progress_bar": False, **given})
    data = ControlDataModule(evaluation_episodes=2, test_episodes=2)
    fabric = Fabric(accelerator="cpu", devices=1)
    FabricLoop(fabric, module, data, callbacks=callbacks, settings=settings, seed=3).fit()
    return module


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "episode_frames").glob("*"))


def repeatable(folder: Path) -> Any:
    rows = RunFolder(folder).read_rows(HISTORY)
    results = json.loads((folder / RESULTS).read_text())
    kept = [{key: repr(value) for key, value in row.items() if key[:4] not in ("time", "memo")} for row in rows]
    return kept, results["episode_return"], results["episode_length"]


def test_a_run_is_the_same_with_and_without_it(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain")
    shown = run(tmp_path / "shown", EpisodeFrames(every_n_iterations=1))
    assert all(torch.equal(value, shown.state_dict()[name]) for name, value in plain.state_dict().items())
    assert repeatable(tmp_path / "plain") == repeatable(tmp_path / "shown")
    assert written(tmp_path / "plain") == []
    assert written(tmp_path / "shown") == [f"iteration_000000{number}.gif" for number in (1, 2, 3)]


def test_the_animation_has_the_frames_and_tells_the_episode(tmp_path: Path) -> None:
    module = run(tmp_path, EpisodeFrames(seed=4, max_frames=2))
    episode = module.render_episode(seed=4, max_frames=2, max_size=320, max_steps=2000)
    with Image.open(tmp_path / "episode_frames" / "iteration_0000003.gif") as image:
        facts = json.loads(image.info["comment"])
        assert (image.n_frames, image.size) == (2, (80, 40))
        image.seek(1)
        assert image.convert("RGB").getpixel((0, 0)) == (10 * episode.length,) * 3
    assert facts == {
        "iteration": 3, "seed": 4, "return": episode.episode_return, "length": episode.length, "is_over": True,
        "steps": [0, episode.length],
    }  # fmt: skip


def test_a_new_run_removes_the_frames_of_the_earlier_one(tmp_path: Path) -> None:
    run(tmp_path, EpisodeFrames())
    run(tmp_path, overwrite=True)
    assert not (tmp_path / "episode_frames").exists()


def test_a_resumed_run_shows_its_own_end(tmp_path: Path) -> None:
    run(tmp_path / "whole", EpisodeFrames())
    run(tmp_path / "parts", EpisodeFrames(), max_iterations=2)
    run(tmp_path / "parts", EpisodeFrames(), resume=True)
    assert written(tmp_path / "parts") == ["iteration_0000002.gif", "iteration_0000003.gif"]
    whole, parts = (tmp_path / part / "episode_frames" / "iteration_0000003.gif" for part in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_an_environment_without_pictures_leaves_one_warning_and_a_whole_run(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run(tmp_path, EpisodeFrames(every_n_iterations=1), name="Counter-v0")
    lines = [str(one.message) for one in found if "Frames" in str(one.message)]
    assert [line.partition(" (")[0] for line in lines] == ["EpisodeFrames: no frames of an episode"]
    assert "\n" not in lines[0]
    assert written(tmp_path) == []
    assert (tmp_path / RESULTS).exists()


def test_an_error_of_the_renderer_ends_no_run(tmp_path: Path) -> None:
    def broken(**_: Any) -> None:
        raise OSError("no\ndisplay")

    module = SimpleNamespace(render_episode=broken, iteration=3)
    with pytest.warns(UserWarning, match=r"^EpisodeFrames: no frames of an episode \(OSError: no display\)$"):
        EpisodeFrames().render(SimpleNamespace(default_root_dir=str(tmp_path)), module)
    assert written(tmp_path) == []


@pytest.mark.parametrize("number", [0, 1])
def test_only_the_first_rank_renders(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ippo_lightning.callbacks.episode_frames.rank", lambda: number)
    EpisodeFrames().render(SimpleNamespace(default_root_dir=str(tmp_path)), module_of("Painted-v0"))
    assert written(tmp_path) == ([] if number else ["iteration_0000000.gif"])


def test_a_sharded_policy_is_not_played_by_one_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ippo_lightning.callbacks.episode_frames.is_sharded", lambda module: True)
    with pytest.warns(UserWarning, match="the policy is sharded"):
        EpisodeFrames().render(SimpleNamespace(default_root_dir=str(tmp_path)), module_of("Painted-v0"))
    assert written(tmp_path) == []


def test_lightnings_trainer_shows_the_end_too(tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path, num_sanity_val_steps=0, limit_val_batches=0,
        callbacks=[EpisodeFrames()],
    )  # fmt: skip
    trainer.fit(module_of("Painted-v0"), datamodule=ControlDataModule())
    assert written(tmp_path) == ["iteration_0000002.gif"]


def content(path: Path) -> bytes:
    """A kept buffer without the fingerprint of the run's settings, of which a Trainer knows fewer."""
    buffer = io.BytesIO()
    torch.save({**torch.load(path, weights_only=True), "fingerprint": ""}, buffer)
    return buffer.getvalue()


def test_lightnings_trainer_does_the_same_bits_with_pictures_and_kept_buffers(tmp_path: Path) -> None:
    def both() -> list[Callback]:
        return [EpisodeFrames(every_n_iterations=1), EpisodeLog(keep_buffers=True)]

    trained = []
    for name, callbacks in (("plain", []), ("kept", both())):
        trained.append(module_of("Painted-v0"))
        seed_everything(3, verbose=False)
        Trainer(
            accelerator="cpu", max_epochs=3, logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, default_root_dir=tmp_path / name, limit_val_batches=0, callbacks=callbacks,
        ).fit(trained[-1], datamodule=ControlDataModule())  # fmt: skip
    trained.append(run(tmp_path / "fabric", *both(), evaluate_every_n_iterations=0, evaluate_first=False))
    first = trained[0].state_dict()
    assert all(torch.equal(first[name], other.state_dict()[name]) for other in trained[1:] for name in first)
    for iteration in range(3):
        name = f"buffers/iteration_{iteration:07d}.pt"
        assert content(tmp_path / "kept" / name) == content(tmp_path / "fabric" / name)
        gif = f"episode_frames/iteration_{iteration + 1:07d}.gif"
        assert (tmp_path / "kept" / gif).read_bytes() == (tmp_path / "fabric" / gif).read_bytes()


def test_a_run_on_texts_is_refused_before_its_first_iteration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^callbacks: EpisodeFrames renders an environment, and PPOModule has none"):
        tiny_loop(tmp_path / "run", tiny_module(), callbacks=[EpisodeFrames()]).fit()
    assert not (tmp_path / "run" / HISTORY).exists()


def episode_of(*colours: int, speed: float = 10.0) -> RenderedEpisode:
    frames = {2 * place: np.full((4, 6, 3), colour, dtype=np.uint8) for place, colour in enumerate(colours)}
    return RenderedEpisode(frames=frames, episode_return=1.0, length=9, is_over=True, frames_per_second=speed)


def test_equal_frames_are_one_that_is_shown_longer() -> None:
    shown = animated(episode_of(1, 1, 9, 9, 9, 1))
    assert [(frame.step, frame.milliseconds) for frame in shown] == [(0, 400), (4, 600), (10, 1500)]


@pytest.mark.parametrize(("speed", "milliseconds"), [(1000.0, 60), (20.0, 100), (1.0, 200)])
def test_the_speed_is_that_of_the_environment_within_limits(speed: float, milliseconds: int) -> None:
    assert [frame.milliseconds for frame in animated(episode_of(1, 2, speed=speed))] == [milliseconds, 1500]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"every_n_iterations": 0}, "every_n_iterations: 0 is out of range; expected an integer >= 1"),
        ({"max_frames": MOST_FRAMES + 1}, f"max_frames: .* expected an integer >= 2 and <= {MOST_FRAMES}"),
        ({"max_size": MOST_PIXELS + 1}, f"max_size: .* expected an integer >= 16 and <= {MOST_PIXELS}"),
        ({"max_steps": 0}, "max_steps: 0 is out of range"),
        ({"seed": -1}, "seed: -1 is out of range"),
    ],
)
def test_settings_out_of_range_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^EpisodeFrames.{message}"):
        EpisodeFrames(**given)
