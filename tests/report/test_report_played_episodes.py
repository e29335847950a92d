"""What the page shows of an episode in an environment, and what it makes of files that no run wrote."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ippo_lightning.report import gather_runs, summarise
from ippo_lightning.report.played_episodes import played_episodes
from ippo_lightning.report.rendering import render_html

FACTS = {"iteration": 3, "seed": 5, "return": 21.5, "length": 9, "is_over": True}


def write_gif(path: Path, *, frames: int = 10, size: tuple[int, int] = (6, 4), comment: object = None) -> None:
    path.parent.mkdir(exist_ok=True)
    images = [Image.new("RGB", size, (place % 250, place // 250, 0)) for place in range(frames)]
    told = {**FACTS, "steps": list(range(frames))} if comment is None else comment
    images[0].save(path, save_all=True, append_images=images[1:], duration=50, comment=json.dumps(told).encode())


def write_png(path: Path) -> None:
    told = PngInfo()
    told.add_text("comment", json.dumps({**FACTS, "steps": [0]}))
    Image.new("RGB", (4, 4)).save(path, format="PNG", pnginfo=told)


@pytest.fixture
def run(folders) -> Path:
    folder = folders.run("ppo", 1, iterations=3, episodes=4)
    (folder / "results.json").write_text(json.dumps({"episode_return": 20.0, "num_episodes": 4}))
    return folder


def played(*runs: Path):
    return played_episodes(gather_runs(runs, root=runs[0] / "report"))


def page(*runs: Path) -> str:
    comparison = gather_runs(runs, root=runs[0] / "report")
    found = played_episodes(comparison)
    return render_html(comparison, summarise(comparison), {}, skipped=[], played=found)


def pixel(data_uri: str) -> object:
    content = base64.b64decode(data_uri.partition("base64,")[2])
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB").getpixel((0, 0))


def test_the_page_shows_the_animation_and_stills_of_it(run: Path) -> None:
    write_gif(run / "episode_frames" / "iteration_0000003.gif")
    (episode,) = played(run)
    assert (
        base64.b64decode(episode.data_uri.removeprefix("data:image/gif;base64,"))
        == (run / "episode_frames" / "iteration_0000003.gif").read_bytes()
    )
    assert [still.words for still in episode.stills] == ["start", *(f"step {step}" for step in (1, 3, 4, 5, 6, 8, 9))]
    assert [pixel(still.data_uri) for still in episode.stills] == [(step, 0, 0) for step in (0, 1, 3, 4, 5, 6, 8, 9)]
    html = page(run)
    sources = re.findall(r'<img src="([^"]*)"', html)
    assert sources == [episode.data_uri, *(still.data_uri for still in episode.stills)]
    assert "After 3 iterations: return 21.5 in 9 steps. Seed of the episode: 5." in html
    assert '<a href="#policy">' in html


def test_a_run_without_frames_has_no_such_section(run: Path) -> None:
    assert "What the policy does" not in page(run)


def test_an_episode_that_was_cut_is_told_so(run: Path) -> None:
    told = {**FACTS, "is_over": False, "steps": [0]}
    write_gif(run / "episode_frames" / "iteration_0000003.gif", frames=1, comment=told)
    (episode,) = played(run)
    assert "return 21.5 in 9 steps, then cut by the renderer." in episode.caption
    assert len(episode.stills) == 1


def test_the_newest_animation_of_what_the_run_has_done_counts(run: Path) -> None:
    for iteration in (1, 2, 7):
        comment = {**FACTS, "iteration": iteration, "steps": [0]}
        write_gif(run / "episode_frames" / f"iteration_000000{iteration}.gif", frames=1, comment=comment)
    (run / "episode_frames" / "iteration_1.gif").write_bytes(b"")
    (episode,) = played(run)
    assert episode.caption.startswith("After 2 iterations: ")


def test_each_method_has_one_episode_of_its_first_seed(folders) -> None:
    runs = [folders.run(method, seed, iterations=3, episodes=4) for method in ("ppo", "ippo") for seed in (1, 2)]
    for folder in runs[1:]:
        write_gif(folder / "episode_frames" / "iteration_0000003.gif")
    found = played(*runs)
    assert [(one.method, "of the run with seed 2" in one.caption) for one in found] == [("ppo", True), ("ippo", False)]


HOSTILE = {
    "text": lambda path: path.write_text("<script>alert(1)</script>"),
    "cut": lambda path: (write_gif(path), path.write_bytes(path.read_bytes()[:40])),
    "svg": lambda path: path.write_text('<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'),
    "png": lambda path: write_png(path),
    "frames": lambda path: write_gif(path, frames=201),
    "pixels": lambda path: write_gif(path, frames=1, size=(641, 2)),
    "bytes": lambda path: (write_gif(path), path.write_bytes(path.read_bytes() + bytes(16 * 1024 * 1024))),
    "steps": lambda path: write_gif(path, comment={**FACTS, "steps": [0]}),
    "comment": lambda path: write_gif(path, comment=["<b>"]),
    "nothing": lambda path: Image.new("RGB", (4, 4)).save(path, format="GIF"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_no_run_wrote_shows_nothing(run: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    path = run / "episode_frames" / "iteration_0000003.gif"
    path.parent.mkdir()
    HOSTILE[kind](path)
    assert played(run) == []
    assert "the report shows no frames of it" in caplog.text


def test_words_of_a_file_are_no_part_of_the_page(run: Path) -> None:
    told = dict.fromkeys(FACTS, "<b>") | {"steps": ["<b>"] * 10}
    write_gif(run / "episode_frames" / "iteration_0000003.gif", comment=told)
    assert "<b>" not in page(run)
