"""Whether there is a folder or a model of a name, before a loader asks the Hub for its files again and again."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import model_info, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

from ippo_lightning.errors import UserError

_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json")
"""One of them in the cache tells that the model has been loaded before."""
_SECONDS = 10.0


def require_folder(name: str, *, field: str) -> None:
    """Refuse a path that does not exist, and a name that the Hub does not have.

    Args:
        name: of a model or tokenizer.
        field: the user's setting, for messages.

    Raises:
        UserError: it is written as a path, and there is no such folder: the Hub's error would not mention folders. Or
            it is a name, and neither the cache nor the Hub has it.
    """
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if is_path and not Path(name).exists():
        raise UserError(
            f"{field}: no folder '{name}'; give a saved model or a Hub name; if a run writes it, make that run first"
        )
    require_on_hub(name, field=field)


def require_on_hub(name: str, *, field: str) -> None:
    """Refuse a name that is no folder, is not in the cache, and cannot be reached on the Hub.

    A folder and a cached model need no network, and none is used for them.

    Args:
        name: of a model or tokenizer.
        field: the user's setting, for messages.

    Raises:
        UserError: there is no such folder, and the Hub has no such model or does not answer.
    """
    if Path(name).exists():
        return
    try:
        if any(isinstance(try_to_load_from_cache(name, file), str) for file in _FILES):
            return
        # one request without retries: the loaders repeat theirs for a minute
        model_info(name, timeout=_SECONDS)
        return
    except GatedRepoError:
        return  # the loader names the page on which access is granted
    except RepositoryNotFoundError:
        reason = "the Hub has no such model (a private one needs a token: hf auth login)"
    except HFValidationError:
        reason = "it is no Hub id either, such as Qwen/Qwen3-0.6B"
    except HfHubHTTPError:
        return  # too many requests and the like pass by; the loader waits for that
    except Exception as error:
        reason = f"the Hub cannot be reached ({type(error).__name__})"
    raise UserError(f"{field}: cannot load '{name}': there is no such folder, and {reason}")
