"""The model card of an export: what the model is, how to load and prompt it, what it scores, and its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

import ippo_lightning
from ippo_lightning.cli.card_facts import (
    Method,
    arguments,
    class_name,
    example_of,
    hub_id,
    licence_of_base,
    mapping,
    method_of,
    policy_of,
    validation_scores,
)
from ippo_lightning.cli.lineage import adapter_base, base_of, lineage, lineage_text
from ippo_lightning.cli.yaml_text import load_yaml
from ippo_lightning.errors import UserError
from ippo_lightning.report.display import number
from ippo_lightning.report.prompt_intervals import prompt_interval
from ippo_lightning.report.prompt_outcomes import read_outcomes
from ippo_lightning.report.starts import start_scores
from ippo_lightning.storage.metric_names import shown_metric
from ippo_lightning.storage.public_text import public_text
from ippo_lightning.storage.public_yaml import public_value, public_yaml
from ippo_lightning.storage.run_folder import CONFIG, TEST_PROMPTS
from ippo_lightning.storage.untrusted_text import visible_text

_OF_THE_TEST = ("exact_match", "majority_vote", "pass_at_k", "unfaithful_fraction")
_NO_RESULTS = ("k", "samples_per_prompt", "num_prompts", "iterations", "seconds")
_MEANINGS = {
    "exact_match": "fraction of the responses whose answer is right",
    "majority_vote": "chance that the most frequent answer to a prompt is right",
    "pass_at_k": "chance that at least one of {k} responses to a prompt is right",
    "unfaithful_fraction": "fraction of the right responses whose reasoning is wrong or missing, or belongs to "
    "another problem",
    "reward": "mean of what the reward of the run gives",
    "response_tokens_mean": "mean length of a response in tokens",
    "truncated_fraction": "fraction of the responses that were cut off at the longest length",
}
_NOT_EXPORTED = ("policy.reference", "policy.value")
PROBED = 128
"""Random tokens over which merging and rounding are measured."""


def model_card(
    run_dir: Path,
    *,
    state: Mapping[str, Any],
    results: Mapping[str, Any],
    form: str,
    license_name: str | None,
    merging_error: float | None = None,
    dtype: str | None = None,
) -> ModelCard:
    """Return the card.

    Args:
        run_dir: folder of the run.
        state: of the checkpoint.
        results: content of `results.json`; results after another number of iterations are left out.
        form: `merged`, `adapter` or `full`.
        license_name: an SPDX name, or None.
        merging_error: what merging and rounding changed in a log-prob at most; None if neither was done.
        dtype: what the weights were rounded to; None for the precision of the run.
    """
    progress = state["progress"]
    iteration = progress["iteration"]
    found = results if results.get("iterations") == iteration else {}
    text = str(state["config"]).rstrip() or _config_text(run_dir)
    config = _loaded(text)
    ancestors = lineage(config)
    base = adapter_base(config) if form == "adapter" else base_of(ancestors)
    method = method_of(config, module=str(state["module"]), iteration=iteration)
    name = run_dir.resolve().name
    data = _header(name, found, base=hub_id(base), form=form, license_name=license_name, method=method)
    known = licence_of_base(base)
    unstated = f"not stated; the base model has {known}" if known else "not stated"
    lines = [
        f"# {name}",
        "",
        _first_sentence(config, form=form, base=base, method=method),
        "",
        *_loading_lines(config, form=form, base=base),
        *_prompt_lines(config, run_dir),
        "## Results",
        "",
        *(_result_lines(found, run_dir, config) or ["The run has no final results of this model."]),
        "",
        *_validation_lines(run_dir, iteration=iteration),
        "## Training",
        "",
        f"- Method: {_cell(method.words)}; {_cell(state['module'])} of ippo-lightning {state['version']}",
        f"- Length: {_length(progress, is_sft='sft' in method.tags)}",
        f"- Form: {form}",
        f"- Base model: {_base_text(base)}",
        *([f"- Began with: {_cell(lineage_text(ancestors))}"] if ancestors else []),
        *_merging_lines(form, error=merging_error, dtype=dtype),
        f"- Licence: {license_name or unstated}",
        "",
        *_chosen_lines(found),
        *_configuration_lines(text),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n")


def _header(
    name: str,
    results: Mapping[str, Any],
    *,
    base: str | None,
    form: str,
    license_name: str | None,
    method: Method,
) -> ModelCardData:
    return ModelCardData(
        license=license_name,
        base_model=base,
        library_name="peft" if form == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=["ippo-lightning", *method.tags],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type="custom",
                dataset_name="test problems of the run",
                metric_type=shown_metric(metric, k=results.get("k")),
                metric_value=round(results[metric], 4),
            )
            for metric in _OF_THE_TEST
            # a run without a right answer has null for the unfaithful fraction
            if isinstance(results.get(metric), (int, float))
        ],
    )


def _first_sentence(config: object, *, form: str, base: str | None, method: Method) -> str:
    what = "An adapter (LoRA)" if form == "adapter" else "A causal language model"
    task = class_name(arguments(mapping(config).get("data")).get("task"))
    of_task = f" for the task `{_cell(task)}`" if task else ""
    return f"{what}{of_task}, trained from {_base_text(base)} with {_cell(method.words)}."


def _base_text(base: str | None) -> str:
    if base is None:
        return "a new model, without a base"
    found = hub_id(base)
    return f"{found} (`{_cell(base)}`)" if found not in (None, base) else _cell(base)


def _loading_lines(config: object, *, form: str, base: str | None) -> list[str]:
    """Return the code that loads the model and continues a prompt."""
    loaded = 'AutoModelForCausalLM.from_pretrained("FOLDER")'
    imports = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    if form == "adapter":
        imports.insert(0, "from peft import PeftModel")
        name = (hub_id(base) or _cell(base or "BASE")).replace('"', "")
        loaded = f'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{name}"), "FOLDER")'
    policy, sampling = policy_of(config), mapping(arguments(mapping(config).get("model")).get("evaluation"))
    encode = "tokenizer(PROMPT, return_tensors='pt').input_ids"
    if policy.get("chat_template"):
        encode = (
            'tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}], add_generation_prompt=True, '
            "return_tensors='pt', return_dict=True)[\"input_ids\"]"
        )
    tokens = sampling.get("max_new_tokens")
    tokens = tokens if isinstance(tokens, int) else 128
    return [
        "`FOLDER` is the folder of this card or its id on the Hub, and `PROMPT` a text as below.",
        "",
        "```python",
        *imports,
        f"model = {loaded}",
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        f"ids = {encode.replace(chr(39), chr(34))}",
        f"print(tokenizer.decode(model.generate(ids, max_new_tokens={tokens})[0, ids.shape[1]:]))",
        "```",
        "",
    ]


def _prompt_lines(config: object, run_dir: Path) -> list[str]:
    policy = policy_of(config)
    task = arguments(arguments(mapping(config).get("data")).get("task"))
    form = "The prompt is plain text, which the model continues."
    if policy.get("chat_template"):
        form = "The prompt is the user's message. The tokenizer's chat template writes the turns around it."
        if policy.get("system_prompt"):
            form += f" A system message comes first: `{_cell(policy['system_prompt'])}`."
    template = task.get("prompt_template")
    if isinstance(template, str) and template != "{question}":
        form += f" The question is put into the template `{_cell(template.encode('unicode_escape').decode())}`."
    example = example_of(run_dir)
    if example is None and class_name(arguments(mapping(config).get("data")).get("task")) in ("ArithmeticTask",):
        example = ("7+12-5?", None)
    shown = []
    if example is not None:
        prompt, response = (None if text is None else _shown_text(text) for text in example)
        shown = ["", "A prompt of the task:", "", "```text", str(prompt), "```"]
        if response is not None:
            shown += ["", "A response to it in the records of the run:", "", "```text", response, "```"]
    return ["## Prompt", "", form, *shown, ""]


def _result_lines(results: Mapping[str, Any], run_dir: Path, config: object) -> list[str]:
    """Return the table of the test, with what its numbers mean."""
    names = [
        name
        for name, value in results.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in _NO_RESULTS
    ]
    if not names:
        return []
    outcomes = read_outcomes(run_dir / TEST_PROMPTS, results=dict(results))
    start = start_scores(run_dir, results=results)
    rows = []
    for name in names:
        interval = prompt_interval(outcomes, name) if outcomes is not None and name in _OF_THE_TEST else None
        cells = [_cell(shown_metric(name, k=results.get("k"))), f"{results[name]:.4g}"]
        cells.append(f"{interval[0]:.3g} to {interval[1]:.3g}" if interval is not None else "")
        if start:
            before = start.get(name.replace("_k", f"_{results.get('k')}") if name == "pass_at_k" else name)
            cells.append("" if before is None else f"{before:.4g}")
        rows.append(f"| {' | '.join(cells)} |")
    titles = ["test", "95 % interval over prompts", *(["start"] if start else [])]
    meanings = [
        f"- {_cell(shown_metric(name, k=results.get('k')))}: {_MEANINGS[name].format(k=results.get('k', 'k'))}"
        for name in names
        if name in _MEANINGS
    ]
    return [
        _size_of_test(results, config),
        "",
        f"| | {' | '.join(titles)} |",
        "|---|" + "--:|" * len(titles),
        *rows,
        "",
        *meanings,
        *(["- label/…: fraction of the responses with this label of the grader"] if _has_labels(names) else []),
        *(["- start: the model that training began with, on the same split"] if start else []),
    ]


def _has_labels(names: Sequence[str]) -> bool:
    return any(name.startswith("label/") for name in names)


def _size_of_test(results: Mapping[str, Any], config: object) -> str:
    prompts, samples = results.get("num_prompts"), results.get("samples_per_prompt")
    if not isinstance(prompts, int):
        return "On the test split of the run."
    settings = arguments(mapping(config).get("model"))
    # null for an evaluation that samples as training does
    sampling = mapping(settings.get("evaluation")) or mapping(settings.get("sampling"))
    temperature = number(sampling.get("temperature"))
    how = "greedy" if sampling.get("greedy") else f"temperature {temperature:g}" if temperature is not None else ""
    each = f", {samples} responses to each" if isinstance(samples, int) else ""
    return f"On {prompts} test prompts{each}{', ' + how if how else ''}."


def _validation_lines(run_dir: Path, *, iteration: int) -> list[str]:
    found = validation_scores(run_dir, iteration=iteration)
    if found is None:
        return []
    return [f"On the validation split, exact_match is {found[0]:.4g} before training and {found[1]:.4g} after it.", ""]


def _length(progress: Mapping[str, Any], *, is_sft: bool) -> str:
    parts = [f"{progress['iteration']} iterations", f"{progress['episodes_seen']} episodes"]
    parts = parts[:1] if is_sft else parts
    return ", ".join(
        [*parts, f"{progress['optimizer_steps']} optimizer steps", f"{progress['tokens_trained']} tokens trained"]
    )


def _merging_lines(form: str, *, error: float | None, dtype: str | None) -> list[str]:
    done = [*(["merged"] if form == "merged" else []), *([f"rounded to {dtype}"] if dtype else [])]
    if error is None or not done:
        return []
    words = " and ".join(done)
    return [f"- {words[0].upper()}{words[1:]}: log-probs of {PROBED} random tokens differ by {error:.1e} at most"]


def _chosen_lines(results: Mapping[str, Any]) -> list[str]:
    """Return what the run chose by itself, such as a precision that the configuration leaves open."""
    chosen = {
        name: value for name, value in mapping(results.get("chosen")).items() if not str(name).startswith(_NOT_EXPORTED)
    }
    if not chosen:
        return []
    rows = [f"| {_cell(name)} | {_cell(value, key=name)} |" for name, value in chosen.items()]
    return ["## Chosen by the run", "", "| setting | value |", "|---|---|", *rows, ""]


def _configuration_lines(text: str) -> list[str]:
    shown = public_yaml(text)
    shortened = " Absolute paths are shortened, and secrets are hidden." if shown != text else ""
    return [
        "## Configuration",
        "",
        "Every setting of the run. `ippo fit --config` on it makes the run again, if the files in it are there."
        + shortened,
        "",
        "```yaml",
        _block(shown).rstrip(),
        "```",
    ]


def _shown_text(text: str) -> str:
    return _block(visible_text(public_text(text[:2000]), multiline=True))


def _block(text: str) -> str:
    # three backticks inside would end the code block early
    return text.replace("```", "'''")


def _cell(value: object, *, key: str = "") -> str:
    # the file may come from anywhere, and a bar or a line break would end the cell
    return visible_text(public_value(str(value)[:2000], key=key)[:240]).replace("|", "\\|").replace("\n", " ")


def _loaded(text: str) -> object:
    try:
        found: object = load_yaml(text, origin="checkpoint")
    except UserError:
        return None
    return found


def _config_text(run_dir: Path) -> str:
    path = run_dir / CONFIG
    return (
        path.read_text(encoding="utf-8").rstrip()
        if path.is_file()
        else f"# ippo-lightning {ippo_lightning.__version__}"
    )
