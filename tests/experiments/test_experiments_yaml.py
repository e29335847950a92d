"""Every YAML under experiments/ is what its header promises, and every combination of the axes is a run."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiment_files import CONTROL_MODELS, CONTROL_TASKS, REWARD_METHODS, REWARD_TASKS, parsed
from jsonargparse import ArgumentParser

from ippo_lightning.cli.columns import columns_of
from ippo_lightning.cli.command_line import read_command_line
from ippo_lightning.cli.compare import axes_of, plan_jobs
from ippo_lightning.cli.experiment_paths import axis_names
from ippo_lightning.cli.parsers import experiment_parser
from ippo_lightning.cli.quick_check import check_command
from ippo_lightning.cli.settings import CompareSettings, MethodSettings
from ippo_lightning.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "experiments"
FILES = sorted(path.relative_to(EXPERIMENTS).as_posix() for path in EXPERIMENTS.rglob("*.yaml"))
GRIDS = [file for file in FILES if file.startswith("grids/")]
RUNS = [file for file in FILES if file not in GRIDS]
COMBINED = ("arithmetic", "gsm8k", "word_problems")
QUESTIONS = ("asdiv", "college_math", "ecqa", "math", "olympiadbench", "own_data", "svamp")
"""Tasks that differ in their data only, so one method and one model of each are enough."""
TASKS = (*COMBINED, *QUESTIONS)
METHODS = sorted(path.stem for path in (EXPERIMENTS / "methods").glob("*.yaml") if path.stem not in REWARD_METHODS)
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {"loss": None, "kl": 0.0, "update": {}},
    "dr_grpo": {"loss": None, "kl": 0.0, "update": {"loss_reduction": "fixed_length"}},
    "rloo": {"loss": {"ratio": "sequence_sum"}, "kl": 0.05, "update": {}},
    "dapo": {
        "loss": {"high": 0.28},
        "kl": 0.0,
        "update": {"loss_reduction": "rollout_token_mean", "mask_truncated": True},
    },
    "gspo": {"loss": {"low": 3e-4, "high": 4e-4, "ratio": "sequence_mean"}, "kl": 0.0, "update": {}},
}
"""Methods that change the module and not the callbacks, and the numbers of their recipes."""
PROMPT_METHODS = ("dump", "pcl", "random_prompts")
"""Methods that choose prompts before sampling."""
SAMPLING_METHODS = ("pilot_commit", "random_commit", "refill")
"""Methods that change what is sampled: neither an algorithm nor a callback."""
FILTERS = [method for method in METHODS if method not in (*ALGORITHMS, *SAMPLING_METHODS)]
MODELS = sorted(path.stem for path in (EXPERIMENTS / "models").glob("*.yaml") if path.stem not in CONTROL_MODELS)
CONTINUED = "#   "


def header(file: str) -> list[str]:
    lines = (EXPERIMENTS / file).read_text(encoding="utf-8").splitlines()
    return list(itertools.takewhile(lambda line: line.startswith("#"), lines))


def header_commands(file: str) -> list[list[str]]:
    """The words of each `# ippo ...` of the header. An indented line belongs to the one above.

    A remark may stand behind a command, two spaces off.
    """
    commands: list[str] = []
    for line in header(file):
        if line.startswith("# ippo "):
            commands.append(line[2:].partition("  ")[0])
        elif line.startswith(CONTINUED) and commands:
            commands[-1] += line[1:]
    return [shlex.split(command) for command in commands]


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    return experiment_parser()


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands name their files from the root of the checkout."""
    monkeypatch.chdir(ROOT)


def run_words(*, base: str = "ppo", **axes: str) -> list[str]:
    return [word for axis, name in {"base": base, **axes}.items() for word in (f"--{axis}", name)]


# --- each file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_the_header_has_a_question_a_command_and_the_time_it_takes(file: str) -> None:
    lines = header(file)
    assert "?" in lines[0] or "models/" in file
    assert any("CPU core" in line or line.startswith("# Hardware and time") for line in lines)
    commands = header_commands(file)
    assert commands
    for words in commands:
        if file in GRIDS:
            assert words == ["ippo", "compare", "--config", f"experiments/{file}"]
        else:
            used = [path.resolve() for path in read_command_line(words[1:]).files]
            assert EXPERIMENTS / file in used


@pytest.mark.parametrize("file", RUNS)
def test_a_file_contains_values_and_nothing_of_one_machine(file: str) -> None:
    text = (EXPERIMENTS / file).read_text(encoding="utf-8")
    assert not [part for part in ("/work", "/home", "/tmp", "../") if part in text]
    content = yaml.safe_load(text)
    assert "run_dir" not in content.get("loop", {}), "the folder of a run is derived"
    given = {"reward", "grader"} & set(content.get("model", {}).get("init_args", {}))
    with_models = {f"tasks/{name}.yaml" for name in REWARD_TASKS}
    assert bool(given) == (file.startswith("rewards/") or file in with_models), "elsewhere they come from the task"


def defaults_in(given: Any, default: Any, place: str = "") -> list[str]:
    """The places of the values of a file that are the defaults."""
    if isinstance(given, dict) and isinstance(default, dict):
        pairs = {key: default[key] for key in given if key in default and key not in ("class_path", "r")}
        return [found for key, value in pairs.items() for found in defaults_in(given[key], value, f"{place}.{key}")]
    return [place] if given == default and given not in ({}, None) else []


@pytest.mark.parametrize(
    "words",
    [run_words(base=base, task=task) for base in ("ppo", "sft") for task in TASKS],
    ids=lambda words: "-".join(words[1::2]),
)
def test_a_file_repeats_no_default(parser: ArgumentParser, words: list[str]) -> None:
    line = read_command_line(["fit", *words])
    settings = parsed(parser, words)
    bare: dict[str, Any] = {"fabric": {}, "loop": {}}
    for section in ("model", "data"):
        bare[section] = {"class_path": settings[section]["class_path"]}
    bare["model"]["init_args"] = {"policy": {"class_path": settings["model"]["init_args"]["policy"]["class_path"]}}
    bare["data"]["init_args"] = {"task": {"class_path": settings["data"]["init_args"]["task"]["class_path"]}}
    for name in ("sampling", "update", "optimizer", "evaluation"):  # written out, or the default is null
        if name in settings["model"]["init_args"]:
            bare["model"]["init_args"][name] = {}
    defaults = parser.parse_args(["--config", yaml.safe_dump(bare)]).as_dict()
    # a default is no repetition where a file before it has another value
    earlier = {path: [read(other) for other in line.files[:number]] for number, path in enumerate(line.files)}
    repeated = [(path, place) for path in line.files for place in defaults_in(read(path), defaults)]
    assert not [f"{path.name}{place}" for path, place in repeated if not any(has(old, place) for old in earlier[path])]


def has(content: Any, place: str) -> bool:
    for key in place.removeprefix(".").split("."):
        if not isinstance(content, dict) or key not in content:
            return False
        content = content[key]
    return True


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# --- combinations ----------------------------------------------------------------------------------------------


def test_the_axes_have_the_names_that_the_pages_promise() -> None:
    assert axis_names("base") == ["control", "ppo", "sft"]
    assert axis_names("task") == sorted((*TASKS, *CONTROL_TASKS, *REWARD_TASKS))
    filters = {"ippo", "fast", "paper", "filter_only", "random", "advantage_sign", "reward"}
    published = {"pods", "drop_equal", "length", "random_half", "leave_one_out", "average_reward", "activation"}
    published |= {"by_layer", *PROMPT_METHODS, *SAMPLING_METHODS}
    of_control = {"iif", "random_drop", "advantage_heuristic", "td_priority"}
    assert {"ppo", "keep_buffers", "gain_stopping", *filters, *of_control, *published} | ALGORITHMS.keys() == set(
        METHODS
    )


@pytest.mark.parametrize(
    ("task", "method"),
    [
        *itertools.product(["arithmetic"], FILTERS),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in itertools.product(COMBINED[1:], FILTERS)),
        *itertools.product(QUESTIONS, ["ippo"]),
    ],
)
def test_a_method_adds_callbacks_to_a_task_and_changes_nothing_else(
    parser: ArgumentParser, task: str, method: str
) -> None:
    plain, changed = (parsed(parser, words) for words in (["--task", task], ["--task", task, "--method", method]))
    assert (plain["loop"].pop("run_dir"), changed["loop"].pop("run_dir")) == (
        f"runs/{task}/ppo",
        f"runs/{task}/{method}",
    )
    names = [item["class_path"].rpartition(".")[2] for item in changed.pop("callbacks")]
    added = yaml.safe_load((EXPERIMENTS / "methods" / f"{method}.yaml").read_text(encoding="utf-8"))
    assert names == ["EpisodeLog", *(item["class_path"] for item in added.get("callbacks+", []))]
    del plain["callbacks"], plain["config"], changed["config"]
    assert plain == changed


@pytest.mark.parametrize("task", ["arithmetic", pytest.param("word_problems", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ALGORITHMS)
def test_an_algorithm_has_the_numbers_of_its_recipe_and_takes_a_filter(
    parser: ArgumentParser, task: str, method: str
) -> None:
    recipe = ALGORITHMS[method]
    plain = parsed(parser, ["--task", task])
    # given after a filter and before it, by the same settings
    orders = [["--method", method, "--method", "ippo"], ["--method", "ippo", "--method", method]]
    for words in orders:
        found = parsed(parser, ["--task", task, *words])
        assert found["loop"].pop("run_dir") == f"runs/{task}/{words[1]}+{words[3]}"
        names = [item["class_path"].rpartition(".")[2] for item in found["callbacks"]]
        assert names == ["EpisodeLog", "InfluenceFilter"]
        assert found["data"] == plain["data"]
        settings, base = found["model"]["init_args"], plain["model"]["init_args"]
        assert settings["policy"]["init_args"] == {**base["policy"]["init_args"], "value": "none"}
        assert settings["kl_controller"]["init_args"]["coef"] == recipe["kl"]
        loss = settings["loss"]
        bare = {"low": 0.2, "high": None, "ratio": "token", "delta": None, "beta": 0.0, "ratio_in_divergence": False}
        assert (loss and dict(loss["init_args"])) == (recipe["loss"] and {**bare, **recipe["loss"]})
        assert settings["update"] == {**base["update"], **recipe["update"]}
        responses = 16 if method == "dapo" else base["sampling"]["num_responses"]
        assert settings["sampling"] == {**base["sampling"], "num_responses": responses}
        assert settings["optimizer"] == base["optimizer"]
        sampled_again = {"num_prompts": None, "max_rounds": 3} if method == "dapo" else None
        assert settings["dynamic_sampling"] == sampled_again


@pytest.mark.parametrize("base", ["ppo", pytest.param("sft", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("task", "model"), [*itertools.product(["arithmetic"], MODELS), *itertools.product(TASKS, ["gemma-2-2b"])]
)
def test_a_model_changes_the_policy_its_rate_and_nothing_else(
    parser: ArgumentParser, task: str, model: str, base: str
) -> None:
    plain, changed = (parsed(parser, run_words(base=base, task=task, **model_)) for model_ in ({}, {"model": model}))
    assert changed["loop"].pop("run_dir") == f"runs/{task}/{model}/{base}"
    del plain["loop"]["run_dir"], plain["config"], changed["config"]
    policies = [settings["model"]["init_args"].pop("policy")["init_args"] for settings in (plain, changed)]
    for settings in (plain, changed):
        for rate in ("learning_rate", "value_learning_rate"):
            settings["model"]["init_args"]["optimizer"].pop(rate, None)
    assert plain == changed
    assert policies[1]["pretrained"] is None or policies[1]["config"] is None, "one start, not two"


@pytest.mark.parametrize("task", TASKS)
def test_supervised_and_ppo_runs_of_a_task_have_the_same_problems(parser: ArgumentParser, task: str) -> None:
    chosen = [parsed(parser, run_words(base=base, task=task))["data"]["init_args"]["task"] for base in ("ppo", "sft")]
    for settings in chosen:
        settings["init_args"].pop("num_demonstrations")  # PPO trains on none
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(
    "override", [["--model.init_args.nope", "1"], ["--data.init_args.batch_size", "many"], ["--loop.nope", "1"]]
)
def test_the_command_line_refuses_a_mistake(parser: ArgumentParser, override: list[str]) -> None:
    with pytest.raises(UserError):
        parsed(parser, ["--task", "gsm8k", *override])


# --- comparisons -------------------------------------------------------------------------------------------------


def grid(name: str) -> CompareSettings:
    content = read(EXPERIMENTS / "grids" / f"{name}.yaml")
    methods = {key: MethodSettings(**value) for key, value in content.pop("methods", {}).items()}
    return CompareSettings(**content, methods=methods)


CONTROLS = ["fast", "paper", "filter_only", "random", "advantage_sign"]
WEIGHTS = ["root", "root_cap", "linear", "linear_cap", "cosine_root_cap", "cosine_linear", "adam_only", "adam_linear"]


SCORED = ["filter_only", "leave_one_out", "average_reward", "iif_text", "activation"]
SELECTORS = [*SCORED, "advantage_sign", "reward", "pods", "random_half", "length", "drop_equal"]
SELECTION = ["ppo", "ippo", "random", "grpo", "grpo+ippo", "grpo+random"]
SELECTION += [*SELECTORS, *(f"grpo+{name}" for name in SELECTORS), "drop_equal+ippo", "grpo+drop_equal+random"]
PROMPTS = ["pcl", "random_prompts", "grpo+refill", "grpo+pilot_commit", "grpo+random_commit"]
WORDS = ["ppo", "ippo", "random", "pods", "grpo", "grpo+ippo", "grpo+random", "grpo+pods"]


@pytest.mark.parametrize(
    ("name", "columns", "seeds"),
    [
        ("demo", ["sft", "ppo", "ippo"], 1),
        ("arithmetic", ["sft", "ppo", "ippo", *CONTROLS], 5),
        ("word_problems", ["sft", "ppo", "ippo"], 3),
        ("selection", [*PROMPTS, *SELECTION], 5),
        ("selection_word_problems", WORDS, 3),
        ("demonstrations", ["size_64", "size_8", "size_16", "size_512", "noise_10", "noise_20", "noise_40"], 5),
        ("sweep", ["ppo", "adam_root_cap", "random", "filter_only", *WEIGHTS], 5),
    ],
)
def test_a_grid_has_the_columns_of_its_tables(name: str, columns: list[str], seeds: int) -> None:
    settings = grid(name)
    planned = columns_of(settings)
    assert [column.name for column in planned] == columns
    jobs = list(plan_jobs(settings, planned))
    assert len(jobs) == seeds * len(columns) - (seeds - 1) * ("sft" in columns)
    for job in jobs[: len(columns)]:
        check_command(read_command_line(job.arguments))


def test_the_grid_of_the_paper_has_its_table_and_every_run_of_it_resolves() -> None:
    settings = grid("paper")
    planned = columns_of(settings)
    assert len(planned) == 5 * 5 * 4
    assert planned[0].name == "gsm8k.rho-1b.sft"
    jobs = [job for job in plan_jobs(settings, planned) if job.seed == settings.seeds[0]]
    for job, column in zip(jobs, planned, strict=True):
        (task, model), method = column.group, column.method
        assert axes_of(column) == {"base": "ppo", "task": task, "model": model, "method": method}
        assert column.command == ("evaluate" if method == "sft" else "fit")
        line = read_command_line(job.arguments)
        check_command(line)
        # each starts from the SFT run of its own task and model
        policies = [layer.get("model", {}).get("init_args", {}).get("policy", {}) for layer in line.layers]
        starts = [
            policy["init_args"]["start_from"] for policy in policies if "start_from" in policy.get("init_args", {})
        ]
        assert starts[-1] == f"runs/{task}/{model}/sft"


def test_every_grid_is_tested_here() -> None:
    names = (
        "arithmetic",
        "demo",
        "demonstrations",
        "paper",
        "selection",
        "selection_word_problems",
        "sweep",
        "word_problems",
    )
    assert [f"grids/{name}.yaml" for name in names] == GRIDS


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("rewards/")])
def test_the_configuration_of_a_run_with_a_reward_of_ours_can_be_read_again(parser: ArgumentParser, file: str) -> None:
    line = read_command_line(["fit", "--task", "arithmetic", "--config", f"experiments/{file}"])
    settings = parser.parse_args(line.words[1:])
    again = parser.parse_string(parser.dump(settings))
    for name in ("reward", "grader"):
        assert again.model.init_args[name] == settings.model.init_args[name]
