"""Two ranks evaluate as one process does, whatever number of prompts each of them has."""

from __future__ import annotations

from pathlib import Path

import launching
import pytest
import two_ranks_evaluate
from evaluated_run import files_of, fit_words

from ippo_lightning.cli.main import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and what two ranks made of it; one of three evaluations had been interrupted."""
    folder = tmp_path_factory.mktemp("evaluated")
    run = folder / "run"
    assert main(fit_words(run)) == 0
    for name, size in (("alone", "4"), ("alone_one", "100")):
        assert main(["evaluate", str(run), "--batch_size", size, "--output", str(folder / name)]) == 0
    (folder / "resumed").mkdir()
    settings = (folder / "alone" / "settings.json").read_bytes()
    (folder / "resumed" / "settings.json").write_bytes(settings)
    launching.run_forked_ranks(Path(two_ranks_evaluate.__file__), folder, str(run))
    return folder


@pytest.mark.parametrize(("ranks", "alone"), [("whole", "alone"), ("resumed", "alone"), ("one", "alone_one")])
def test_two_ranks_have_the_items_and_numbers_of_one_process(ranks: str, alone: str, place: Path) -> None:
    assert files_of(place / ranks) == files_of(place / alone)


def test_a_mistake_ends_both_ranks(place: Path) -> None:
    for rank in (0, 1):
        assert '"wrong": 2' in (place / f"rank{rank}.json").read_text(encoding="utf-8")
    assert "contains another evaluation (sampling.num_responses: 4, and now 1)" in (place / "log.txt").read_text()
