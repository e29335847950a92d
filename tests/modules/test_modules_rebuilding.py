"""`load_from_checkpoint` builds a module again without arguments, and nothing that a checkpoint may not build."""

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
from lightning import Trainer
from training_parts import TINY, length_reward, same, tiny_data, tiny_policy, trainable

from ippo_lightning.algorithms import AdaptiveKLController, GroupBaseline
from ippo_lightning.data import arithmetic_tokenizer
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.errors import UserError
from ippo_lightning.modules import OptimizerSettings, PPOModule, SFTModule
from ippo_lightning.modules.hyperparameters import described_arguments
from ippo_lightning.policies import CausalLMPolicy, LoraSettings, SamplingSettings
from ippo_lightning.rewards import CombinedReward, FormatReward, TaskGrade
from ippo_lightning.run.stable_text import stable_text
from ippo_lightning.tasks import AnswerGrader, grade_arithmetic

SAMPLING = SamplingSettings(num_responses=2, max_new_tokens=8)


@pytest.fixture(scope="module")
def saved_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    sizes = {**TINY, "hidden_size": 64, "intermediate_size": 64}  # 4-bit blocks have 64 weights
    CausalLMPolicy(config=sizes, tokenizer=arithmetic_tokenizer(), value="none", reference="none").save_pretrained(
        folder
    )
    return str(folder)


def trained(module: Any, folder: Path, **data: Any) -> Path:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=tiny_data(**data))
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def ppo(policy: CausalLMPolicy, **changes: Any) -> PPOModule:
    settings: dict[str, Any] = {
        "reward": CombinedReward({"right": TaskGrade(), "form": FormatReward(["#"])}, weights={"form": 0.1}),
        "grader": grade_arithmetic,
        "sampling": SAMPLING,
        "update": UpdateSettings(num_epochs=1, minibatch_size=8, micro_batch_size=8),
        "kl_controller": AdaptiveKLController(coef=0.1, target=0.5, horizon=32),
        "optimizer": OptimizerSettings(learning_rate=1e-2, betas=(0.8, 0.9)),
    }
    return PPOModule(policy=policy, **{**settings, **changes})


def log_probs(module: Any) -> list[torch.Tensor]:
    """Of policy and reference, on fixed rows."""
    policy = module.policy.eval()
    encoded = module.encode_demonstrations({"prompts": ["1+2=", "7-3="], "responses": ["3", "4"]})
    with torch.no_grad():
        found = [policy(*encoded).log_probs]
        return [*found, policy.reference_log_probs(*encoded)] if policy.has_reference else found


POLICIES = {
    "full": lambda base: tiny_policy(),
    "full, from a folder": lambda base: CausalLMPolicy(pretrained=base, chat_template=False),
    "adapter": lambda base: tiny_policy(lora=LoraSettings(r=2)),
    "nf4": lambda base: CausalLMPolicy(pretrained=base, quantization="nf4", lora=LoraSettings(r=2)),
    "int8": lambda base: CausalLMPolicy(pretrained=base, quantization="int8", lora=LoraSettings(r=2)),
    "separate critic": lambda base: tiny_policy(value="separate", pad_token="<pad>"),
}


@pytest.mark.parametrize("kind", POLICIES)
def test_a_ppo_module_is_built_again_without_arguments(kind: str, saved_base: str, tmp_path: Path) -> None:
    module = ppo(POLICIES[kind](saved_base))
    path = trained(module, tmp_path)
    loaded = PPOModule.load_from_checkpoint(path)
    assert all(torch.equal(one, other) for one, other in zip(log_probs(module), log_probs(loaded), strict=True))
    assert same(trainable(module), trainable(loaded))
    for name in ("optimizer_settings", "update_settings", "sampling", "evaluation", "advantages", "loss", "value_loss"):
        assert getattr(loaded, name) == getattr(module, name)
    assert loaded.progress_state() == module.progress_state()
    assert stable_text(loaded.reward, 8) == stable_text(module.reward, 8)
    assert loaded.grader.grader is grade_arithmetic


def test_an_sft_module_is_built_again_without_arguments(tmp_path: Path) -> None:
    policy = tiny_policy(value="none", reference="none")
    module = SFTModule(policy=policy, grader=AnswerGrader("number", steps="plain"), max_grad_norm=None)
    path = trained(module, tmp_path, stage="sft", num_demonstrations=32)
    loaded = SFTModule.load_from_checkpoint(path)
    assert torch.equal(*(log_probs(one)[0] for one in (module, loaded)))
    assert loaded.max_grad_norm is None
    assert vars(loaded.grader.grader) == vars(module.grader.grader)


class Halved(PPOModule):
    """A subclass whose constructor takes something else, and decides the rest."""

    def __init__(self, *, policy: CausalLMPolicy, half: float = 0.5, **rest: Any) -> None:
        super().__init__(policy=policy, entropy_coef=half / 2, **rest)
        self.half = half


def test_a_subclass_gets_the_arguments_of_its_own_constructor(tmp_path: Path) -> None:
    path = trained(Halved(policy=tiny_policy(), half=0.2, grader=grade_arithmetic, sampling=SAMPLING), tmp_path)
    loaded = Halved.load_from_checkpoint(path)
    assert (loaded.half, loaded.entropy_coef, loaded.sampling) == (0.2, 0.1, SAMPLING)
    assert Halved.load_from_checkpoint(path, half=0.4).entropy_coef == 0.2


def test_code_of_the_users_is_given_again_which_one_line_says(tmp_path: Path) -> None:
    path = trained(ppo(tiny_policy(), reward=length_reward), tmp_path)
    expected = (
        r"reward: the checkpoint does not build training_parts.length_reward.*PPOModule.load_from_checkpoint\(path, "
    )
    with pytest.raises(UserError, match=expected):
        PPOModule.load_from_checkpoint(path)
    assert PPOModule.load_from_checkpoint(path, reward=length_reward).reward.reward is length_reward


def test_descriptions_are_those_of_the_constructor_that_was_called() -> None:
    module = ppo(tiny_policy(value="none"), advantages=GroupBaseline(), reward=None)
    assert module.hparams["advantages"]["class_path"] == "ippo_lightning.algorithms.GroupBaseline"
    assert module.hparams["policy"]["init_args"]["config"] == TINY
    assert module.hparams["reward"] is None
    assert described_arguments(module) == {}  # no constructor is running


def spoilt(path: Path, change: Any) -> Path:
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path.with_name("spoilt.ckpt"))
    return path.with_name("spoilt.ckpt")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(ppo(tiny_policy()), tmp_path_factory.mktemp("checkpoint"))


def hyperparameter(name: str, value: Any) -> Any:
    return lambda checkpoint: checkpoint["hyper_parameters"].update({name: copy.deepcopy(value)})


HOSTILE: dict[str, tuple[Any, str]] = {
    "a function of the system": (hyperparameter("reward", {"class_path": "os.system"}), "no public class"),
    "an import": (hyperparameter("reward", {"class_path": "my_module.reward"}), "no public class"),
    "a module with effects": (hyperparameter("reward", {"class_path": "ippo_lightning.cli.__main__"}), "no public"),
    "a hidden name": (hyperparameter("reward", {"class_path": "ippo_lightning.rewards.call.time.sleep"}), "no public"),
    "an instantiator": (hyperparameter("_instantiator", "os.system"), "names a function that would build"),
    "one in an old place": (lambda c: c.update(hparams={"_instantiator": "os.system"}), "names a function"),
    "remote code": (
        lambda c: c["hyper_parameters"]["policy"]["init_args"].update(trust_remote_code=True),
        "runs code of others",
    ),
    "a kernel": (
        lambda c: c["hyper_parameters"]["policy"]["init_args"].update(attn_implementation="org/kernel"),
        "runs code of others",
    ),
    "remote code of an engine": (
        lambda c: c["hyper_parameters"]["sampling"]["init_args"].update(engine={"trust_remote_code": True}),
        "runs code of others",
    ),
    "a file elsewhere": (
        lambda c: c["ippo_lightning"]["tokenizer"].update({"../x": torch.zeros(1)}),
        "no readable tokenizer",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_checkpoint_builds_nothing_beyond_this_library(kind: str, checkpoint: Path) -> None:
    change, message = HOSTILE[kind]
    with pytest.raises(UserError, match=message):
        PPOModule.load_from_checkpoint(spoilt(checkpoint, change))


def test_a_checkpoint_without_a_description_names_what_is_missing(checkpoint: Path) -> None:
    path = spoilt(checkpoint, lambda content: content.pop("hyper_parameters"))
    with pytest.raises(UserError, match=r"does not describe the module.*policy="):
        PPOModule.load_from_checkpoint(path)
    loaded = PPOModule.load_from_checkpoint(path, policy=tiny_policy(), grader=grade_arithmetic)
    assert loaded.iteration == 1


def test_an_open_file_is_read_too(checkpoint: Path) -> None:
    with checkpoint.open("rb") as file:
        assert PPOModule.load_from_checkpoint(file).iteration == 1


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
