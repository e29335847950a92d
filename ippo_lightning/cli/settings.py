"""Settings of the commands that are no experiment. Light, so that a mistake in them is reported at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from ippo_lightning.cli.experiment_paths import FOLDERS, find_file
from ippo_lightning.errors import UserError, require_range
from ippo_lightning.storage.method_names import METHOD_NAME, is_method_name

Form = Literal["merged", "adapter"]
Dtype = Literal["float32", "bfloat16", "float16"]
Precision = Literal["run", "32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true"]


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """One column of a comparison, given by its files.

    Args:
        title: as the table shows it.
        config: YAML files of `ippo fit`, later ones win.
        overrides: dotted keys and values on top of them.
        command: `fit` trains; `evaluate` only measures the start that the other columns share, once.
    """

    title: str = ""
    config: list[str] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    command: Literal["fit", "evaluate"] = "fit"


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """What `ippo compare` runs: every combination of the axes, and columns given by their files.

    Args:
        run_dir: folder of everything that is written: `<column>/seed_<n>/`, `results.json`, `report.html`.
        axes: names for `base`, `task`, `model` and `method`: stems of files in experiments/base, tasks, models and
            methods. A method that has the name of a base and no file of its own is that base alone.
        start: name of one more column per base, task and model, which evaluates once what the others start from; null
            for none.
        methods: more columns, by name, for what the axes cannot state. They come first in the table.
        titles: of methods, as the table shows them.
        baseline: the method or column that differences are taken against; null for none. A method such as `grpo+ippo`
            is compared with `grpo` if that is a column too.
        featured: the method or column that the headline of the report is about; null for the first one.
        seeds: every column runs once with each.
        overrides: dotted keys and values for all columns.
        jobs: runs at a time.
        threads: of each run; another number changes the last bits of its results. Null for the number with which the
            comparison began; at its beginning, for the cores of the processor divided by `jobs`.
        overwrite: do runs again that were made with other settings; otherwise they are an error.

    Raises:
        UserError: nothing to run, no seeds, a seed twice, an unknown name, or a number out of its range.
    """

    run_dir: str = "runs/compare"
    axes: dict[str, list[str]] = field(default_factory=dict)
    start: str | None = None
    methods: dict[str, MethodSettings] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    baseline: str | None = None
    featured: str | None = None
    seeds: list[int] = field(default_factory=lambda: [1])
    overrides: dict[str, Any] = field(default_factory=dict)
    jobs: int = 1
    threads: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        require_values(self)
        if not self.methods and not self.axes:
            raise UserError(
                "axes, methods: both are empty; expected a file, for example: ippo compare --config grids/demo; or at "
                "least one of them, as in axes: {task: [arithmetic], method: [ppo, ippo]}"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds: {self.seeds} is wrong; expected a list of different integers")
        if not all(0 <= seed < 2**32 for seed in self.seeds):
            raise UserError(f"seeds: {self.seeds} is out of range; expected integers from 0 to {2**32 - 1}")
        for name in ("jobs", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}: {value} is out of range; expected an integer >= 1")
        if self.start is not None and not self.axes:
            raise UserError(f"start: '{self.start}' needs axes, whose tasks and models it starts; or set it to null")
        for axis, names in self.axes.items():
            _check_axis(axis, names)
        for name, method in self.methods.items():
            _check_method(name, method)


def require_values(settings: Any, *, within: str = "") -> None:
    """Refuse null in a field that has no use for it; a parser accepts null everywhere.

    Args:
        settings: a dataclass.
        within: what stands before the name of the field in the message.

    Raises:
        UserError: a field is None whose type has no None.
    """
    for name, kind in get_type_hints(type(settings)).items():
        if getattr(settings, name) is None and type(None) not in get_args(kind):
            raise UserError(f"{within}{name}: null is no value for it; leave {name} out for its default")


def _check_axis(axis: str, names: list[str]) -> None:
    if axis not in FOLDERS:
        raise UserError(f"axes: '{axis}' is unknown; expected some of {', '.join(FOLDERS)}")
    if not names or len(set(names)) < len(names):
        raise UserError(f"axes.{axis}: {names} is wrong; expected a list of different names")


def _check_method(name: str, method: MethodSettings) -> None:
    # the name becomes a folder of the comparison and a name in its report
    if not is_method_name(name):
        raise UserError(f"methods: {name!r} is not the name of a folder; expected {METHOD_NAME}")
    require_values(method, within=f"methods.{name}.")
    for path in method.config:
        if find_file(path) is None:
            raise UserError(f"methods.{name}.config: {path} is not a file; expected a YAML of `ippo fit`")


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What `ippo export` writes.

    Args:
        output: folder; by default `export/` in the folder of the run.
        form: `merged` is an ordinary model, `adapter` the trained LoRA alone.
        checkpoint: `last` for the newest that is complete, `best`, or the path of a checkpoint.
        dtype: of the weights of a merged model; null leaves it.
        license: an SPDX name for the card; null states that the license of the base model applies.
        overwrite: replace files in the folder that an earlier export did not write, or that were changed since.
    """

    output: str | None = None
    form: Form = "merged"
    checkpoint: str = "last"
    dtype: Dtype | None = None
    license: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        require_values(self)


@dataclass(frozen=True, kw_only=True)
class ReplaySettings:
    """How `ippo replay` repeats a step.

    Args:
        step: number of the step, counted from 0; null for the latest that was not finite.
        device: `auto` is the first GPU if there is one; or a name of torch, for example `cpu` or `cuda:1`.
        precision: `run` is that of the run; `mixed` computes in half precision from weights in float32, `true` converts
            the weights.
        all: show every module, and not only those around the first number that is not finite.
    """

    step: int | None = None
    device: str = "auto"
    precision: Precision = "run"
    all: bool = False

    def __post_init__(self) -> None:
        require_values(self)


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What `ippo evaluate RUN` measures, and how.

    Args:
        model: another model, with the task, prompts and grader of the run: a folder, a Hub id, `package:NAME`, or
            `start` for the model that the run began with; null for the model that the run trained.
        baseline: one more model, of the same forms as `model`, with the task of the first run. It is the first column
            of the table, and the differences are to it.
        checkpoint: whose parameters the run's model has: `last` for the newest that is complete, `best`, or a path.
        split: `test` or `validation`.
        samples: responses to each prompt; null for that of the run's own evaluation, as in the next three.
        temperature: of sampling; 0 takes the most likely token each time.
        max_new_tokens: most tokens per response.
        batch_size: prompts that are sampled together, with their own random stream. After an interruption, batches that
            are done are not sampled again.
        k: of pass@k; null for 1, 2, 4, ... and the number of samples.
        episodes: of a run in environments, in place of the five options before; null for those of the run's own
            evaluation.
        output: folder of the results, with a folder for each run if there are several; by default
            `evaluations/NAME` in the folder of each run.

    Raises:
        UserError: a number out of its range, or settings that contradict each other.
    """

    model: str | None = None
    baseline: str | None = None
    checkpoint: str = "last"
    split: Literal["test", "validation"] = "test"
    samples: int | None = None
    temperature: float | None = None
    max_new_tokens: int | None = None
    batch_size: int | None = None
    k: list[int] | None = None
    episodes: int | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        require_values(self)
        for name in ("samples", "max_new_tokens", "batch_size", "episodes"):
            if getattr(self, name) is not None:
                require_range(name, getattr(self, name), at_least=1, integer=True)
        if self.temperature:
            require_range("temperature", self.temperature, at_least=1e-4, below=math.inf)
        if self.temperature == 0 and self.samples is not None and self.samples > 1:
            raise UserError(f"samples: {self.samples} responses are all the same at temperature 0; expected 1")
        if self.model is not None and self.checkpoint != "last":
            raise UserError(f"checkpoint: {self.checkpoint} is of the run's own model, and model names another one")
        for name in ("model", "baseline", "output"):
            if getattr(self, name) == "":
                raise UserError(f"{name}: no value given")
        for k in self.k or ():
            if k < 1 or (self.samples is not None and k > self.samples):
                most = f" to {self.samples}, the number of samples" if self.samples is not None else ""
                raise UserError(f"k: {k} is out of range; expected integers from 1{most}")
