"""The model of a run as others load it: transformers, PEFT, vLLM; with a card that states its origin."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from peft import PeftModel

import ippo_lightning
from ippo_lightning.cli.export_folder import check_output, fill_export
from ippo_lightning.cli.model_card import PROBED, model_card
from ippo_lightning.cli.settings import Dtype, ExportSettings
from ippo_lightning.errors import UserError
from ippo_lightning.modules import TextModule
from ippo_lightning.policies.merging import merged_copy
from ippo_lightning.policies.saving import save_adapter
from ippo_lightning.policies.saving_check import check_saved
from ippo_lightning.policies.self_check import probe_policy
from ippo_lightning.run.checkpoint_folder import CheckpointFolder
from ippo_lightning.run.checkpoints import restore_checkpoint
from ippo_lightning.storage.checksums import has_wrong_checksum
from ippo_lightning.storage.output_folders import require_writable
from ippo_lightning.storage.public_text import public_name
from ippo_lightning.storage.public_yaml import public_yaml
from ippo_lightning.storage.run_folder import RESULTS, RunFolder


def export_run(run_dir: Path, module: Any, *, settings: ExportSettings) -> tuple[Path, Path]:
    """Write the model of a run and its card; return the folder, and the checkpoint that the model is of.

    Args:
        run_dir: folder of a run of `ippo fit`.
        module: built from the configuration of the run; it gets the parameters of the checkpoint.
        settings: see `ExportSettings`.

    Raises:
        UserError: a run without a language model, no checkpoint, one of another model, results that cannot be read,
            `form: adapter` of a run that trained all weights, a folder in which other files would be replaced, or what
            was written, loaded again, does not compute what the policy computes.
    """
    # first, because loading takes long
    folder = export_folder(run_dir, settings)
    # early: a card without them would be wrong, and the model alone has no card
    results = read_results(run_dir)
    if not isinstance(module, TextModule):
        kind = type(module).__name__
        raise UserError(f"run: {run_dir} is of a {kind}, without a language model; its weights are in {run_dir}/model")
    checkpoint, state = CheckpointFolder(RunFolder(run_dir).checkpoints).read(settings.checkpoint)
    restore_checkpoint(state, source=checkpoint, module=module)
    has_adapter = isinstance(module.policy.model, PeftModel)
    if settings.form == "adapter" and not has_adapter:
        raise UserError(f"form: adapter is not possible, {run_dir} trained all weights; expected merged")
    form = settings.form if has_adapter else "full"

    def write(place: Path) -> None:
        error = _write_model(module.policy, place, settings=settings)
        card = model_card(
            run_dir,
            state=state,
            results=results,
            form=form,
            license_name=settings.license,
            merging_error=error,
            dtype=settings.dtype,
        )
        # after the model: PEFT writes a README.md of its own beside an adapter
        card.save(place / "README.md")

    origin = {"run": public_name(str(run_dir)), "checkpoint": checkpoint.name, "form": form}
    origin |= {"iteration": state["progress"]["iteration"], "version": ippo_lightning.__version__}
    fill_export(folder, write, origin=origin)
    return folder, checkpoint


def export_folder(run_dir: Path, settings: ExportSettings) -> Path:
    """Return the folder of an export, after it is made.

    Args:
        run_dir: folder of the run.
        settings: see `ExportSettings`.

    Raises:
        UserError: see `check_output`; or nothing can be written into the folder.
    """
    folder = Path(settings.output) if settings.output else run_dir / "export"
    check_output(folder, overwrite=settings.overwrite)
    require_writable("output", folder)
    return folder


def _write_model(policy: Any, place: Path, *, settings: ExportSettings) -> float | None:
    """Write the model and check it; return what merging and rounding changed, or None if neither was done."""
    error = None
    if settings.form == "adapter":
        save_adapter(policy.model, policy.tokenizer, place)
        _name_base(place / "adapter_config.json")
    else:
        error = _save_merged(policy, place, dtype=settings.dtype)
    if policy.self_check:
        check_saved(policy, place, adapter=settings.form == "adapter", expected=probe_policy(policy))
    return error


def log_prob_difference(first: Any, second: Any, *, vocabulary: int) -> float:
    """Return the largest difference between the log-probs of two models over random tokens.

    Args:
        first: a transformers or PEFT model.
        second: another.
        vocabulary: ids are below it.
    """
    import torch

    # a generator of its own, so that the same model always gets the same card
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (PROBED // 32, 32), generator=generator)
    with torch.no_grad():
        # float32 before the softmax, which would otherwise add a rounding error of its own to the difference
        one, two = (model(input_ids=ids.to(model.device)).logits.float().log_softmax(-1) for model in (first, second))
    return float((one - two.to(one.device)).abs().max())


def _save_merged(policy: Any, folder: Path, *, dtype: Dtype | None) -> float | None:
    """Save an ordinary model; return what merging and rounding changed, or None if neither was done."""
    import torch

    model = policy.model
    if isinstance(model, PeftModel):
        model = merged_copy(model)
    elif dtype is not None:
        # `to` changes a model in place, and the policy is the other side of the comparison below
        model = copy.deepcopy(model)
    if dtype is not None:
        model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    if model is policy.model:
        return None
    # ids of the tokenizer only: an embedding may have more rows, which no text uses
    return log_prob_difference(policy.model, model, vocabulary=len(policy.tokenizer))


def read_results(run_dir: Path) -> dict[str, Any]:
    """Return the content of a run's `results.json`; empty if there is none, or it is not what the run wrote.

    Raises:
        UserError: it is no complete JSON.
    """
    path = run_dir / RESULTS
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # cut off, other bytes, or thousands of nested brackets
        raise UserError(
            f"{RESULTS}: {path} is no complete JSON ({type(error).__name__}); resume the run, which writes it again, "
            "or remove it to export without results"
        ) from error
    return found if isinstance(found, dict) and not has_wrong_checksum(found) else {}


def _name_base(path: Path) -> None:
    """Let the configuration of an adapter name its base for others, and no folders of this machine."""
    text = path.read_text(encoding="utf-8")
    content = json.loads(public_yaml(text))
    base = content.get("base_model_name_or_path")
    if isinstance(base, str):
        content["base_model_name_or_path"] = public_name(base)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
