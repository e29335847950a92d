"""A checkpoint that is damaged, or no checkpoint, is one line; what is no fault of the file is not called one."""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_modules import ppo, trained
from training_parts import tiny_policy

from ippo_lightning.errors import UserError
from ippo_lightning.modules import PPOModule


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(ppo(tiny_policy()), tmp_path_factory.mktemp("checkpoint"))


REPLACEMENTS: tuple[Any, ...] = (
    *(None, True, 0, -1, 2.5, "", "x", "\0", b"x", (), [], {}, [1], {1: 2}, {"x": {}}, torch.zeros(2), torch.ones(())),
    *({"class_path": 3}, {"class_path": "ippo_lightning.engine.UpdateSettings", "init_args": [1]}),
    {"class_path": "ippo_lightning.engine.UpdateSettings", "init_args": {"x": 1}},
)
REMOVED = object()


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where each value of nested dictionaries and lists stands."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the dictionaries and lists on the way; the tensors are shared."""
    made = copy.copy(tree)
    if len(path) > 1:
        made[path[0]] = replaced(tree[path[0]], path[1:], value)
    elif value is REMOVED:
        del made[path[0]]
    else:
        made[path[0]] = value
    return made


def faults_of(path: Path, folder: Path, *, number: int | None) -> list[str]:
    """What loading a checkpoint raises that is not one line for the user, over values that are replaced or removed."""
    content = torch.load(path, weights_only=True)
    # the optimizer and the loops are Trainer's, and `load_from_checkpoint` does not read them
    read = [place for place in places(content) if place[0] not in ("optimizer_states", "loops", "lr_schedulers")]
    changes = [(place, value) for place in read for value in (*REPLACEMENTS, REMOVED)]
    chosen = changes if number is None else random.Random(0).sample(changes, number)
    found = []
    for place, value in chosen:
        torch.save(replaced(content, place, value), folder / "changed.ckpt")
        try:
            PPOModule.load_from_checkpoint(folder / "changed.ckpt")
        except UserError as error:
            found += [f"{place}: {error}"] if "\n" in str(error) else []
        except Exception as error:
            found.append(f"{place} = {value!r:.40}: {type(error).__name__}: {error}")
    return found


def test_a_checkpoint_with_any_other_value_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    assert faults_of(checkpoint, tmp_path, number=4) == []


@pytest.mark.slow
def test_a_checkpoint_with_each_other_value_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    assert faults_of(checkpoint, tmp_path, number=None) == []


class Runs:
    """Unpickled, it would write a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.path, "w")


FILES: dict[str, tuple[Any, str]] = {
    "a missing file": (lambda _: None, "does not exist"),
    "an empty file": (lambda _: b"", "cannot be loaded"),
    "a text": (lambda _: b"not a checkpoint", "cannot be loaded|contains more than"),
    "half of it": (lambda content: content[: len(content) // 2], "cannot be loaded"),
    "all but its end": (lambda content: content[:-100], "cannot be loaded"),
    "zeros in its middle": (lambda content: content[:500] + bytes(2000) + content[2500:], "cannot be loaded|contains"),
    "a list": (lambda _: pickled([1, 2]), "expected a checkpoint of Trainer"),
    "a tensor": (lambda _: pickled(torch.zeros(2)), "expected a checkpoint of Trainer"),
    "an empty dictionary": (lambda _: pickled({}), "does not describe the module"),
    "a deep one": (lambda _: pickled({"hyper_parameters": nested(300)}), "lacks state_dict|cannot be loaded"),
}


def pickled(value: Any) -> bytes:
    torch.save(value, file := io.BytesIO())
    return file.getvalue()


def nested(depth: int) -> Any:
    return {"x": nested(depth - 1)} if depth else 1


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_checkpoint_is_one_line(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    make, said = FILES[kind]
    content = make(checkpoint.read_bytes())
    if content is not None:
        (tmp_path / "some.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        PPOModule.load_from_checkpoint(tmp_path / "some.ckpt")
    assert "\n" not in str(caught.value)


def test_a_pickle_that_would_run_code_runs_none(tmp_path: Path) -> None:
    torch.save({"hyper_parameters": Runs(str(tmp_path / "it_ran"))}, tmp_path / "some.ckpt")
    with pytest.raises(UserError, match="contains more than tensors and plain values"):
        PPOModule.load_from_checkpoint(tmp_path / "some.ckpt")
    (tmp_path / "other.ckpt").write_bytes(pickle.dumps({"hyper_parameters": Runs(str(tmp_path / "it_ran"))}))
    with pytest.raises(UserError):
        PPOModule.load_from_checkpoint(tmp_path / "other.ckpt")
    assert not (tmp_path / "it_ran").exists()


class Opens(PPOModule):
    """Its constructor reads a file of its own, which is missing."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        Path("no_such_lexicon.txt").read_text(encoding="utf-8")


class Mistaken(PPOModule):
    """A hook with a mistake."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["no_such_key"]


class Full:
    """A file for which the memory does not suffice."""

    def read(self, *_: Any) -> bytes:
        raise MemoryError

    def seek(self, *_: Any) -> int:
        return 0

    tell = seek


OTHER_ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "a file of a constructor": (
        lambda path: Opens.load_from_checkpoint(path, policy=tiny_policy()),
        FileNotFoundError,
        r"no_such_lexicon\.txt",
    ),
    "a hook": (lambda path: Mistaken.load_from_checkpoint(path), KeyError, "^'no_such_key'$"),
    "memory": (lambda path: PPOModule.load_from_checkpoint(Full()), MemoryError, ""),
    "a device": (
        lambda path: PPOModule.load_from_checkpoint(path, map_location="cuda:99"),
        UserError,
        r"^map_location: 'cuda:99' cannot be used on this machine",
    ),
    "devices": (
        lambda path: PPOModule.load_from_checkpoint(path, map_location={"cpu": "cuda:99"}),
        UserError,
        r"^map_location: \{'cpu': 'cuda:99'\} cannot be used on this machine",
    ),
    "an address": (
        lambda path: PPOModule.load_from_checkpoint("http://127.0.0.1:9/x.ckpt"),
        UserError,
        r"^checkpoint: http://127\.0\.0\.1:9/x\.ckpt cannot be loaded \(.*\); expected a checkpoint of Trainer$",
    ),
    "a folder": (
        lambda path: PPOModule.load_from_checkpoint(path.parent),
        UserError,
        r"cannot be loaded \(IsADirectoryError: .*\); expected a checkpoint of Trainer$",
    ),
}


@pytest.mark.parametrize("kind", OTHER_ERRORS)
def test_what_is_no_fault_of_the_file_is_not_called_one(kind: str, checkpoint: Path) -> None:
    load, raised, said = OTHER_ERRORS[kind]
    with pytest.raises(raised, match=said) as caught:
        load(checkpoint)
    assert "damaged" not in str(caught.value)
    assert "x.ckpt does not exist" not in str(caught.value)
