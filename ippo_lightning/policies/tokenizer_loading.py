"""Load a tokenizer, and check it against a model."""

from __future__ import annotations

import copy
import difflib
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ippo_lightning.errors import UserError
from ippo_lightning.policies.packaged_models import local_model
from ippo_lightning.policies.tokenization import check_tokenizer, pad_id_of
from ippo_lightning.storage.model_names import require_folder

_CONFIG = "config.json"
_MODELS_INSIDE = ("merged", "model", "model/merged")
"""Folders of a model in those of a run, and in that of an adapter with its merged model beside it."""


def load_tokenizer(
    tokenizer: PreTrainedTokenizerBase | str | None,
    *,
    pretrained: str | None,
    trust_remote_code: bool = False,
    pad_token: str | None = None,
) -> PreTrainedTokenizerBase:
    """Return the tokenizer; it must have an EOS token.

    Args:
        tokenizer: an object, a folder or Hub name, or None for the one saved with the model.
        pretrained: the model's folder, Hub name or package, if any.
        trust_remote_code: run code that comes with the tokenizer.
        pad_token: a token of its vocabulary, or None for its own.

    Raises:
        UserError: there is none, it cannot be loaded, it lacks an EOS token, or the pad token is not in it.
    """
    model = local_model(pretrained)
    # before the tokenizer: a wrong name of the model is no fault of the tokenizer, which has the same name by default
    if model is not None:
        require_model(model)
    source = model if tokenizer is None else tokenizer
    if source is None:
        raise UserError("policy.tokenizer: none; a model built from a config needs one")
    if isinstance(source, str):
        if source is not model:
            require_folder(source, field="policy.tokenizer")
        try:
            source = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        except Exception as error:
            raise UserError(f"policy.tokenizer: cannot load {source!r}; {one_line(error)}") from error
    loaded: PreTrainedTokenizerBase = source
    check_tokenizer(loaded)
    return loaded if pad_token is None else _padding_with(loaded, pad_token)


def require_model(name: str) -> None:
    """Refuse what `require_folder` refuses, and a folder that contains no model.

    Args:
        name: of the model, as `policy.pretrained`.

    Raises:
        UserError: there is no such model. The line names a folder inside that contains one.
    """
    require_folder(name, field="policy.pretrained")
    path = Path(name)
    if not path.exists() or (path / _CONFIG).is_file():  # a name of the Hub, or a model
        return
    if (path / "adapter_config.json").is_file():
        raise UserError(
            f"policy.pretrained: {name!r} contains an adapter; give its base model here and the folder as "
            "policy.lora.adapter_path"
        )
    inside = next((str(path / part) for part in _MODELS_INSIDE if (path / part / _CONFIG).is_file()), None)
    remedy = f"did you mean {inside!r}?" if inside else "give a saved model or a Hub name"
    raise UserError(f"policy.pretrained: {name!r} is no model, because there is no {_CONFIG} in it; {remedy}")


def eos_ids_of(model: PreTrainedModel) -> tuple[int, ...]:
    """Return every id that ends a response by the model's own generation settings; they may name several.

    Args:
        model: a causal language model.
    """
    found = getattr(model.generation_config, "eos_token_id", None)
    ids = [] if found is None else [found] if isinstance(found, int) else list(found)
    # Some configurations write -1 for none.
    return tuple(int(token) for token in ids if int(token) >= 0)


def keep_eos_ids(model: PreTrainedModel, ids: list[int]) -> None:
    """Write the ids that end a response into the model's generation settings, so that a saved model ends there too.

    Args:
        model: changed in place if its settings name other ids.
        ids: of tokenizer and model together.
    """
    config = model.generation_config
    if config is not None and set(eos_ids_of(model)) != set(ids):
        config.eos_token_id = ids if len(ids) > 1 else ids[0]


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Refuse a tokenizer with more ids than the model's embedding has rows, but for added tokens that texts may lack.

    Args:
        tokenizer: of the policy.
        rows: of the embedding.

    Raises:
        UserError: a token of its own vocabulary, EOS or the pad token has no embedding.
    """
    # Added tokens without an embedding are refused where a text contains one; few texts do.
    added = set(tokenizer.get_added_vocab())
    needed = max(token for name, token in tokenizer.get_vocab().items() if name not in added) + 1
    used = {"eos_token": tokenizer.eos_token_id, "pad_token": pad_id_of(tokenizer)}
    for name, token in used.items():
        if token >= rows:
            raise UserError(
                f"policy.tokenizer: {name} has the id {token}, and the model's embedding has {rows} rows; give the "
                "tokenizer that belongs to the model, or an adapter that was saved with its resized embedding"
            )
    if rows < needed:
        raise UserError(f"policy: an embedding of {rows} tokens for a tokenizer of {needed}; use the model's own")


def one_line(error: Exception) -> str:
    """Return kind and first line of an error.

    Args:
        error: of a library.
    """
    # Messages of the libraries can be very long, and the command line prints a user's mistake in one line.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _padding_with(tokenizer: PreTrainedTokenizerBase, pad_token: str) -> PreTrainedTokenizerBase:
    vocabulary = tokenizer.get_vocab()
    if pad_token not in vocabulary:  # a new token would need another row of the embedding
        near = difflib.get_close_matches(pad_token, vocabulary, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else "null takes EOS"
        raise UserError(f"policy.pad_token: {pad_token!r} is not in the tokenizer's vocabulary; {remedy}")
    tokenizer = copy.deepcopy(tokenizer)  # the caller's object may serve another policy
    tokenizer.pad_token = pad_token
    return tokenizer
