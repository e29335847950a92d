"""`ippo evaluate RUN ...`: models of runs on the prompts of a split, with a record of each response, side by side."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

import ippo_lightning
from ippo_lightning.cli.building import build_loop
from ippo_lightning.cli.commands import experiment_of
from ippo_lightning.cli.evaluate_episodes import evaluate_episodes, use_episodes
from ippo_lightning.cli.evaluated_model import EvaluationJob, model_of, named_model, use_model
from ippo_lightning.cli.evaluation_table import Column, print_evaluations
from ippo_lightning.cli.run_words import fabric_words
from ippo_lightning.cli.settings import EvaluateSettings
from ippo_lightning.cli.settings_digest import digest_of
from ippo_lightning.cli.trust import CODE, REMOTE_CODE, without_trust
from ippo_lightning.distributed.collectives import end_process_group, rank
from ippo_lightning.errors import UserError
from ippo_lightning.policies import SamplingSettings
from ippo_lightning.report.ratio_intervals import LEVEL, RESAMPLES, SEED
from ippo_lightning.run.checkpoints import weights_fingerprint
from ippo_lightning.run.evaluation import split_named
from ippo_lightning.run.evaluation_folder import EvaluationFolder, evaluation_name
from ippo_lightning.run.evaluation_numbers import (
    by_prompt,
    check_ks,
    common_places,
    default_ks,
    differences,
    numbers,
    ratios,
)
from ippo_lightning.run.fabric_loop import FabricLoop
from ippo_lightning.run.item_evaluation import (
    Prompt,
    batch_sizes,
    check_judge,
    evaluate_items,
    prompts_of,
    settings_of,
    text_module,
)
from ippo_lightning.run.items import Item
from ippo_lightning.storage.output_folders import refuse_run_folder, require_writable
from ippo_lightning.storage.run_folder import (
    DIFFERENCES,
    EVALUATED,
    ITEMS,
    START,
    JsonObject,
    RunFolder,
)

if TYPE_CHECKING:
    from jsonargparse import Namespace

BuildLoop = Callable[[Path, "Callable[[Namespace], None]"], FabricLoop]
"""Builds the loop of a run's folder, after the second argument has changed the parsed configuration."""
_BATCH_SIZE = 128
"""Prompts per batch with a data module that has no number of its own."""
_RANK_TIMEOUT = 6 * 3600.0
"""Seconds that ranks wait for each other."""
_ONE_DEVICE = ("--fabric.devices=1", "--fabric.num_nodes=1", "--fabric.strategy=auto", "--fabric.loggers=[]")
_BOOTSTRAP = {"resamples": RESAMPLES, "level": LEVEL, "seed": SEED}


def run_command(given: Namespace, words: Sequence[str]) -> None:
    """Run `ippo evaluate RUN`.

    Args:
        given: the parsed settings, which change.
        words: as the user typed them.

    Raises:
        UserError: see `evaluate_all`.
    """
    runs = [Path(run) for run in given.pop("runs")]
    remote_code = without_trust(words)[1].remote_code
    for name in (CODE, REMOTE_CODE):
        given.pop(name)

    def build(run_dir: Path, change: Callable[[Namespace], None]) -> FabricLoop:
        parser, experiment = experiment_of(run_dir, *_ONE_DEVICE, *fabric_words(words), given=words)
        change(experiment[experiment.subcommand])
        return build_loop(parser, experiment)

    evaluate_all(runs, EvaluateSettings(**given.as_dict()), build, remote_code=remote_code)
    end_process_group()


def evaluate_all(
    runs: Sequence[Path], settings: EvaluateSettings, build: BuildLoop, *, remote_code: bool = False
) -> None:
    """Evaluate runs one after the other, write the results and print one table.

    Args:
        runs: folders of runs.
        settings: see `EvaluateSettings`.
        build: makes the loop of a run.
        remote_code: run code that comes with a model that the settings name.

    Raises:
        UserError: a folder is no run, or has no model; a setting is wrong; or the results have no place.
    """
    jobs = _jobs(runs, settings, remote_code=remote_code)
    columns = []
    for job in jobs:
        column = _evaluate(job, settings, build)
        columns += [column] if column is not None else []
        gc.collect()  # the model of one run goes, before that of the next is loaded
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if rank() != 0:
        return
    shared = [common_places(columns[0].prompts, column.prompts) for column in columns[1:]]
    found = [
        differences(columns[0].ratios, column.ratios, pairs=pairs)
        for column, pairs in zip(columns[1:], shared, strict=True)
    ]
    if found:
        content = {column.name: difference for column, difference in zip(columns[1:], found, strict=True)}
        place = Path(settings.output) if settings.output else columns[0].folder
        RunFolder(place).write(DIFFERENCES, {"minus": columns[0].name, "bootstrap": _BOOTSTRAP, "differences": content})
    print_evaluations(columns, found, with_pass_at_1=settings.k is not None)


def _jobs(runs: Sequence[Path], settings: EvaluateSettings, *, remote_code: bool) -> list[EvaluationJob]:
    # All runs are checked before the first one takes hours.
    models = [(run, name, model_of(run, settings)) for run, name in zip(runs, labels(runs), strict=True)]
    if settings.baseline is not None:
        baseline = named_model(settings.baseline, option="baseline")
        word = Path(baseline.pretrained or START).resolve().name
        taken = any(word == name for _, name, _ in models)
        models.insert(0, (runs[0], f"{word} (baseline)" if taken else word, baseline))
    if settings.output is not None:
        refuse_run_folder("output", Path(settings.output))
    jobs = []
    for run, name, model in models:
        output = None
        if settings.output is not None:
            output = Path(settings.output) / name if len(models) > 1 else Path(settings.output)
            refuse_run_folder("output", output)
        jobs.append(EvaluationJob(run, name, model, output, remote_code))
    for job in jobs:
        require_writable("output", job.output or job.run / EVALUATED)
    return jobs


def labels(runs: Sequence[Path]) -> list[str]:
    """Return a short name of each run: the end of its path that no other run has.

    Raises:
        UserError: a run is given twice.

    Example:
        >>> labels([Path("runs/ppo/seed_1"), Path("runs/ippo/seed_1")])
        ['ppo/seed_1', 'ippo/seed_1']
    """
    parts = [run.resolve().parts for run in runs]
    for run, own in zip(runs, parts, strict=True):
        if parts.count(own) > 1:
            raise UserError(f"runs: {run} is given twice")
    names = ["/".join(own) for own in parts]
    for length in range(max(map(len, parts)), 0, -1):
        shorter = ["/".join(own[-length:]) for own in parts]
        names = shorter if len(set(shorter)) == len(shorter) else names
    return names


def sampling_of(own: SamplingSettings, settings: EvaluateSettings) -> SamplingSettings:
    """Return how responses are sampled: as in the run's own evaluation, but for what the user has given.

    Args:
        own: `evaluation` of the run's module.
        settings: see `EvaluateSettings`.

    Raises:
        UserError: several responses to each prompt, which would all be the same.
    """
    given = {"num_responses": settings.samples, "max_new_tokens": settings.max_new_tokens}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if settings.temperature is not None:
        changes["greedy"] = settings.temperature == 0
        if settings.temperature > 0:
            changes["temperature"] = settings.temperature
    chosen = replace(own, **changes)
    if chosen.greedy and chosen.num_responses > 1 and settings.temperature == 0:
        raise UserError(f"samples: {chosen.num_responses} responses are all the same at temperature 0; give samples 1")
    return chosen


def _evaluate(job: EvaluationJob, settings: EvaluateSettings, build: BuildLoop) -> Column | None:
    """Evaluate one run; return its column on rank 0, None on other ranks."""
    loop, digest = _loop_of(job, settings, build)
    if loop.module.evaluates == "episodes":
        return evaluate_episodes(loop, job, settings, digest=digest)
    module = text_module(loop.module, run=job.run)
    module.evaluation = sampling_of(module.evaluation, settings)
    samples = module.evaluation.num_responses
    ks = settings.k or default_ks(samples)
    check_ks(ks, samples=samples)
    if torch.distributed.is_initialized():  # by an earlier run: this Fabric has to know the ranks, too
        loop.fabric.launch()
    checkpoint = loop.set_up_evaluation(job.model.checkpoint)
    check_judge(module)
    prompts = prompts_of(loop, settings.split)
    batch_size = settings.batch_size or int(getattr(loop.datamodule, "evaluation_batch_size", _BATCH_SIZE))
    described = _described(loop, prompts, job=job, checkpoint=checkpoint)
    described |= {"split": settings.split, "batch_size": batch_size, "task_sha256": digest}
    word = checkpoint.stem if checkpoint is not None else Path(job.model.pretrained or START).name
    own_place = job.run / EVALUATED / evaluation_name(described, split=settings.split, model=word)
    sizes = batch_sizes(len(prompts), batch_size=batch_size, samples=samples)
    folder = EvaluationFolder(job.output or own_place, sizes=sizes)
    _begin(folder, described, loop)
    try:
        with split_named(settings.split):
            items = evaluate_items(loop, folder, prompts, batch_size=batch_size)
    finally:
        folder.release()
    if items is None:
        return None
    column = _column(job, items, folder=folder.path, settings=described, ks=ks)
    folder.write_numbers(_content(column))
    return column


def _begin(folder: EvaluationFolder, settings: JsonObject, loop: FabricLoop) -> None:
    error = None
    if rank() == 0:
        try:
            folder.begin(settings)
        except UserError as raised:
            error = str(raised)
    # All ranks end together: one alone would leave the others waiting.
    error = loop.fabric.broadcast(error)
    if error is not None:
        raise UserError(error)


def _loop_of(job: EvaluationJob, settings: EvaluateSettings, build: BuildLoop) -> tuple[FabricLoop, str]:
    """Return the loop of a run, without its callbacks, and a digest of its data, grader and reward."""
    digest = ""

    def change(experiment: Namespace) -> None:
        nonlocal digest
        use_episodes(experiment, settings)
        arguments = experiment.model.init_args
        graded_by = [experiment.data, arguments.get("grader"), arguments.get("reward")]
        digest = digest_of(graded_by)
        experiment.callbacks = None
        # The configuration names the old place if the run was moved.
        experiment.loop.run_dir = str(job.run)
        # A rank that is a few batches behind the others is not lost.
        experiment.loop.rank_timeout = max(experiment.loop.rank_timeout, _RANK_TIMEOUT)
        if job.model.pretrained is not None:
            use_model(experiment, job.model, remote_code=job.remote_code)

    try:
        return build(job.run, change), digest
    except UserError as error:
        field, _, rest = str(error).partition(": ")
        if job.model.pretrained is not None and field.endswith(("policy.pretrained", "policy.tokenizer")):
            raise UserError(f"{job.model.option}: {rest}") from error
        raise


def _described(
    loop: FabricLoop, prompts: Sequence[Prompt], *, job: EvaluationJob, checkpoint: Path | None
) -> dict[str, Any]:
    """Return what the responses depend on, as JSON: two evaluations with the same are the same."""
    # Before the first forward, see `frozen_fingerprint`.
    module = text_module(loop.module)
    weights = weights_fingerprint(module.policy.model)
    name = job.model.pretrained or START
    if checkpoint is not None:
        inside = checkpoint.resolve().is_relative_to(job.run.resolve())
        name = checkpoint.resolve().relative_to(job.run.resolve()).as_posix() if inside else str(checkpoint)
    return {
        "model": {
            "name": name,
            "began_with": module.policy.source.pretrained,
            "iteration": None if checkpoint is None else module.iteration,
            "weights": weights,
        },
        **settings_of(module, prompts),
        "precision": str(loop.fabric.strategy.precision.precision),
        "device": loop.fabric.device.type,
        "versions": {
            "ippo-lightning": ippo_lightning.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _column(
    job: EvaluationJob, items: Sequence[Item], *, folder: Path, settings: JsonObject, ks: Sequence[int]
) -> Column:
    groups = by_prompt(items)
    found = ratios(groups, ks=ks)
    return Column(
        name=job.name,
        run=job.run,
        folder=folder,
        settings=settings,
        is_finished=RunFolder(job.run).has_ended(),
        prompts=[(group[0]["prompt"], group[0]["reference"]) for group in groups],
        ratios=found,
        numbers=numbers(found),
        size=_size(len(groups), settings["sampling"]),
    )


def _size(num_prompts: int, sampling: Any) -> str:
    how = "greedy" if sampling["greedy"] else f"temperature {sampling['temperature']:g}"
    responses = f"{num_prompts} prompts x {sampling['num_responses']} responses"
    return f"{responses}, {how}, at most {sampling['max_new_tokens']} tokens"


def _content(column: Column) -> JsonObject:
    # Nothing of the clock: an evaluation that was interrupted has the same file.
    settings = json.loads(json.dumps(column.settings))
    return {
        "run": str(column.run),
        "settings": settings,
        "numbers": column.numbers,
        "bootstrap": _BOOTSTRAP,
        "items": ITEMS,
    }
