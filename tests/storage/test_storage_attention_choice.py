"""A model's folder is data: no attention kernel in it is fetched, and no code in it runs."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_parts import tiny_policy
from transformers import modeling_utils

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy
from ippo_lightning.rewards import RewardModel

KERNELS = ("evil/kernel", "evil/kernel@main:fn", "kernels-community/flash-attn2", "flash_attention_2", "paged|x/y")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_policy(value="none", reference="none").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of attention that transformers has gone to fetch or to import."""
    names: list[str] = []

    def lazy_import(implementation: str, **_: Any) -> None:
        names.append(implementation)
        raise ImportError("not in a test")

    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", lazy_import)
    return names


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def load(folder: Path, **settings: Any) -> CausalLMPolicy:
    return CausalLMPolicy(pretrained=str(folder), value="none", reference="none", **settings)


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("loads", "remedy"),
    [(load, "set policy.attn_implementation to"), (lambda folder: RewardModel(str(folder)), "remove .* from its conf")],
    ids=["policy", "reward model"],
)
def test_a_kernel_in_the_configuration_is_refused_before_it_is_fetched(
    folder: Path, fetched: list[str], key: str, kernel: str, loads: Callable[[Path], Any], remedy: str
) -> None:
    change_config(folder, **{key: kernel})
    with pytest.raises(UserError, match=remedy) as error:
        loads(folder)
    assert kernel in str(error.value)
    assert not fetched


def test_a_kernel_that_the_user_names_is_the_users_choice(folder: Path, fetched: list[str]) -> None:
    with pytest.raises(UserError):  # there is none here
        load(folder, attn_implementation="evil/kernel")
    assert fetched == ["evil/kernel"]


@pytest.mark.parametrize("chosen", ["sdpa", "eager"])
def test_the_users_choice_replaces_that_of_the_folder(folder: Path, fetched: list[str], chosen: str) -> None:
    change_config(folder, _attn_implementation="evil/kernel")
    assert load(folder, attn_implementation=chosen).language_model.config._attn_implementation == chosen
    assert not fetched


def test_an_attention_of_torch_stays_that_of_the_folder(folder: Path) -> None:
    change_config(folder, _attn_implementation="eager")
    assert load(folder).language_model.config._attn_implementation == "eager"


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("HIT",)


def test_weights_are_not_unpickled(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    for content in (pickle.dumps(Evil()), None):
        if content is None:
            torch.save({"model.embed_tokens.weight": Evil()}, folder / "pytorch_model.bin")
        else:
            (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(UserError, match=r"policy\.pretrained"):
            load(folder)
    assert not (tmp_path / "HIT").exists()


def test_python_files_of_a_folder_do_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "evil.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'HIT')!r})\nclass Model: ...\nclass Config: ...\n"
    )
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Model", None]}
    for fields in ({"auto_map": auto}, {"auto_map": auto, "model_type": "evil"}):
        change_config(folder, **fields)
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": auto}))
        with contextlib.suppress(UserError):  # whether the model loads without that code depends on its type
            load(folder)
    assert not (tmp_path / "HIT").exists()
