"""The documentation is true: every block of code runs, every metric is in the table, every page is built."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from ippo_lightning.cli.experiment_paths import base_of_task
from ippo_lightning.cli.main import main
from ippo_lightning.cli.parsers import build_parser
from ippo_lightning.cli.run_words import of_runs

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
TASK = "data.init_args.task.init_args"
TINY_DATA = [f"--{TASK}.num_train=32", f"--{TASK}.num_validation=4", f"--{TASK}.num_test=4"]
TINY_DATA += ["--data.init_args.batch_size=4", f"--{TASK}.num_demonstrations=32"]
TINY = {"max_iterations": 2, "evaluate_every_n_iterations": 2, "evaluate_first": False}
RUN_OVERRIDES = {
    **{f"loop.{name}": value for name, value in TINY.items()},
    f"{TASK}.num_train": 32,
    f"{TASK}.num_validation": 4,
    f"{TASK}.num_test": 4,
    "data.init_args.batch_size": 4,
}


class Block(NamedTuple):
    """A block of code in a page."""

    page: str
    number: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.number}"


def blocks_of(page: str) -> list[Block]:
    found = re.findall(
        r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    return [Block(page, number, language, text) for number, (language, text) in enumerate(found)]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def test_every_block_is_of_a_kind_that_is_run() -> None:
    kinds = {block.language for block in BLOCKS}
    assert kinds <= {"python", "bash", "yaml", "text"}, kinds
    assert len(BLOCKS) > 25


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that has the checkout's experiments; what the blocks write stays in it."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- Python ----------------------------------------------------------------------------------------------


def readme_names() -> dict[str, Any]:
    """What the README's pieces of Python speak of: a model, its losses, and batches."""
    from lightning import Trainer

    model = torch.nn.Linear(3, 1)

    def losses(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).square().flatten(1).mean(1)

    return {
        "Trainer": Trainer,
        "batches": [torch.randn(4, 3)],
        "model": model,
        "validation_loss": lambda model, batch: losses(model, batch).mean(),
        "episode_losses": losses,
        "demonstration_batches": [torch.randn(4, 3)],
        "episode_batches": [torch.randn(5, 3)],
    }


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.language == "python"}))
@pytest.mark.usefixtures("checkout")
def test_the_python_of_a_page_runs_from_top_to_bottom(page: str) -> None:
    names: dict[str, Any] = {"__name__": "docs", **(readme_names() if page == "README.md" else {})}
    for block in blocks_of(page):
        if block.language == "python":
            runs(block, names)
    if "scores" in names:
        assert torch.isfinite(names["scores"]).all()
    for name in ("ShortAnswersPPO", "EntropyBonusPPO"):
        if name in names:
            trains(names[name])
    if "look_at" in names:
        repeats(names["look_at"])


def runs(block: Block, names: dict[str, Any]) -> None:
    code = compile(block.text, block.name, "exec")
    exec(code, names)


def trains(kind: Any) -> None:
    """A class that a page defines goes through an iteration."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from training_parts import tiny_loop, tiny_module

    plain = tiny_module()
    module = kind(policy=plain.policy, reward=plain.reward, sampling=plain.sampling, update=plain.update_settings)
    tiny_loop(Path(f"run_{kind.__name__}"), module, max_iterations=1).fit()
    assert module.iteration == 1


def repeats(look_at: Any) -> None:
    """The function of a page repeats a step of a run that ended by it."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from training_parts import tiny_data, tiny_loop, tiny_policy

    from ippo_lightning.modules import SFTModule

    settings = {"value": "none", "reference": "none"}
    module = SFTModule(policy=tiny_policy(**settings))
    with torch.no_grad():
        module.policy.language_model.get_input_embeddings().weight.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match="nonfinite/step_0000000"):
        tiny_loop(Path("run"), module, data=tiny_data(stage="sft", num_demonstrations=32)).fit()
    look_at("run/nonfinite/step_0000000.pt", tiny_policy(**settings))


# --- YAML ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml"], ids=lambda block: block.name)
def test_a_piece_of_yaml_fits_into_an_experiment(
    block: Block, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "piece.yaml").write_text(block.text, encoding="utf-8")
    content = yaml.safe_load(block.text)
    is_grid = "axes" in content or "methods" in content
    words = ["compare"] if is_grid else ["fit", "--task", "arithmetic"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--config", "piece.yaml", "--print_config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert {key.rstrip("+") for key in content} <= set(printed)


# --- the shell ---------------------------------------------------------------------------------------------


def small(words: list[str]) -> list[str]:
    """The same command on a few problems for a few iterations."""
    if words[1] == "compare":
        overrides = {**RUN_OVERRIDES, "callbacks": []}
        return [*words[1:], f"--overrides={json.dumps(overrides)}", "--seeds=[1]", "--run_dir=runs/compare"]
    if words[1] not in ("fit", "evaluate") or of_runs(words[1:]) is not None:
        return words[1:]
    given = {word.split("=")[0] for word in words}
    loop = [f"--loop.{name}={json.dumps(value)}" for name, value in TINY.items() if f"--loop.{name}" not in given]
    if "--resume" in words:
        loop = ["--loop.max_iterations=3"]  # one more than before; its other settings are those of the run
    folder = [] if given & {"--loop.run_dir", "--resume"} else ["--loop.run_dir=runs/docs", "--loop.overwrite=true"]
    task = words[words.index("--task") + 1] if "--task" in words else ""
    if task and base_of_task(task) == "control":
        return [*words[1:], *TINY_CONTROL, *loop, *folder]
    demonstrations = [f"--{TASK}.num_demonstrations=32"] if "sft" in words else []
    return [*words[1:], *TINY_DATA, *demonstrations, *loop, *folder]


TINY_CONTROL = [
    *("--model.init_args.num_steps=32", "--model.init_args.update.num_epochs=1"),
    *("--data.init_args.evaluation_episodes=2", "--data.init_args.test_episodes=2"),
]


SHELL = [block for block in BLOCKS if block.language == "bash"]
LONG = (
    "docs/guides/evaluate.md:0",
    "docs/guides/report.md:0",
    "docs/guides/run.md:0",
    "docs/guides/run.md:6",
    "docs/index.md:5",
)
"""Blocks whose commands take longest, most of which README.md has as well."""


@pytest.mark.parametrize(
    "block",
    [pytest.param(block, marks=pytest.mark.slow if block.name in LONG else ()) for block in SHELL],
    ids=lambda block: block.name,
)
def test_the_commands_of_a_block_run(block: Block, checkout: Path) -> None:
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] != "ippo":
            checked_otherwise(words, line)
        elif "--print_config" in words:
            with pytest.raises(SystemExit) as stop:
                main(small(words))
            assert stop.value.code == 0, line
        elif words[1] == "compare":
            build_parser().parse_args(small(words))  # the slow tests run it
        else:
            make_ready(words, checkout)
            assert main(small(words)) == 0, line


COMPARISONS = {
    command.strip()
    for block in SHELL
    for line in block.text.splitlines()
    if (command := line.split("#")[0]).startswith("ippo compare")
}


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(COMPARISONS))
@pytest.mark.usefixtures("checkout")
def test_a_comparison_of_a_page_runs(command: str) -> None:
    assert main(small(shlex.split(command))) == 0


def make_ready(words: list[str], checkout: Path) -> None:
    """Make the runs that a block resumes or evaluates, if no block before it has made them."""
    evaluated = [word for word in words[2:] if word.startswith("runs/")] if of_runs(words[1:]) is not None else []
    resumed = [words[words.index("--resume") + 1]] if "--resume" in words else []
    for run in (run for run in [*evaluated, *resumed] if not (checkout / run).exists()):
        assert main(small(["ippo", "fit", "--task", "arithmetic", "--loop.run_dir", run])) == 0


def checked_otherwise(words: list[str], line: str) -> None:
    """What sets up the environment that these tests run in, or takes minutes, is only known to be there."""
    environment = {**os.environ, "PIP_NO_INDEX": "1"}
    if words[0] == "make":
        checks = ["make", "--dry-run", *words[1:]]
    elif words[:2] == ["pip", "install"]:
        checks = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--no-build-isolation", *words[2:]]
    elif words[0].endswith("pytest") or words[-1].endswith(".py") or "pytest" in line:
        checks = [sys.executable, "-m", "py_compile", *[word for word in words if word.endswith(".py")]]
    else:
        pytest.fail(f"a command that no test knows: {line}")
    done = subprocess.run(checks, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-500:]


# --- the pages ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built pages."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_the_pages_are_built_without_a_warning(site: Path) -> None:
    options = (site / "options.html").read_text(encoding="utf-8")
    assert all(word in options for word in ("max_weight", "clip_range", "keep_last_checkpoints", "gae_lambda"))


def test_the_pages_work_as_local_files(site: Path) -> None:
    """Each script, style sheet and image is a file of the site, and so is the index of the search."""
    pages = [page for page in sorted(site.rglob("*.html")) if page.name != "404.html"]
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img)[^>]* src="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]* rel="(?:stylesheet|icon)"[^>]* href="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]* href="([^"]+)"[^>]* rel="(?:stylesheet|icon)"', text)
        assert any("iframe-worker" in name for name in loaded), page
        missing = [name for name in loaded if not name.startswith("data:") and not (page.parent / name).is_file()]
        assert not missing, (page, missing)
    assert (site / "search" / "search_index.js").read_text(encoding="utf-8").startswith("var __index = {")


@pytest.mark.parametrize(("page", "least"), [("method", 15), ("scoring", 3), ("metrics", 1)])
def test_formulas_are_typeset(site: Path, page: str, least: int) -> None:
    text = (site / f"{page}.html").read_text(encoding="utf-8")
    assert text.count("<math ") >= least
    assert "arithmatex" not in text
    assert not re.search(r"\\(?:frac|sum|pi|rangle)", re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))


def documented_metrics() -> set[str]:
    table = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.usefixtures("checkout")
def test_the_table_of_metrics_has_every_metric_and_no_other() -> None:
    base = ["ippo", "fit", "--task", "arithmetic"]
    ippo = [*base, "--method", "ippo"]
    assert main(small([*ippo, "--loop.run_dir", "one"])) == 0
    assert main(small([*base, "--base", "sft", "--loop.run_dir", "two"])) == 0
    assert main(small(["ippo", "fit", "--task", "cartpole", "--loop.run_dir", "three"])) == 0
    logged: set[str] = set()
    for run in ("one", "two", "three"):
        with (Path(run) / "csv" / "metrics.csv").open(encoding="utf-8") as file:
            logged |= set(file.readline().strip().split(","))
    optional = {
        "influence/part_other",
        "influence/target_episodes",
        *(f"influence/predicted_gain{end}" for end in ("", "_low", "_high")),
        "influence/layer_kept_min",
        "influence/layers_without_rows",
        *(f"influence/layer_kept_{part}" for part in ("embedding", "attention", "mlp", "norm", "other")),
        "rollout/sampler_gap_mean",
        "rollout/sampler_gap_max",
        "rollout/prompts_offered",
        "rollout/prompts_sampled",
        "rollout/reward/NAME",
        "rollout/zero_variance_fraction",
        "dynamic_sampling/rounds",
        "dynamic_sampling/prompts",
        "dynamic_sampling/groups_dropped",
        "dynamic_sampling/filled_fraction",
        "pilot_commit/pilots",
        "pilot_commit/pilots_discarded",
        "pilot_commit/reward_mean",
        "pilot_commit/zero_variance_fraction",
        "update/critic_only",
        "eval/reward",
        "eval/reward/NAME",
    }
    assert logged - {"step"} == documented_metrics() - optional
