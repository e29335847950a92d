"""`load_from_checkpoint` builds a module again without arguments, and nothing that a checkpoint may not build."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_modules import SAMPLING, ppo, trained
from training_parts import TINY, length_reward, same, tiny_policy, trainable

from ippo_lightning.algorithms import GroupBaseline
from ippo_lightning.data import arithmetic_tokenizer
from ippo_lightning.errors import UserError
from ippo_lightning.modules import PPOModule, SFTModule
from ippo_lightning.modules.hyperparameters import described_arguments
from ippo_lightning.policies import CausalLMPolicy, LoraSettings
from ippo_lightning.run.stable_text import stable_text
from ippo_lightning.tasks import AnswerGrader, grade_arithmetic


@pytest.fixture(scope="module")
def saved_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    sizes = {**TINY, "hidden_size": 64, "intermediate_size": 64}  # 4-bit blocks have 64 weights
    CausalLMPolicy(config=sizes, tokenizer=arithmetic_tokenizer(), value="none", reference="none").save_pretrained(
        folder
    )
    return str(folder)


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


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"rewrd": length_reward}, "rewrd: PPOModule has no such argument; did you mean reward?"),
        ({"nothing": 1}, "nothing: PPOModule has no such argument; expected one of policy, "),
    ],
)
@pytest.mark.parametrize("more", [{}, {"hparams_file": "hparams.yaml"}], ids=["checkpoint", "hparams"])
def test_an_argument_that_the_constructor_lacks_is_named(
    given: dict[str, Any], line: str, more: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        PPOModule.load_from_checkpoint(tmp_path / "any.ckpt", **more, **given)
    assert str(caught.value).startswith(line)


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
