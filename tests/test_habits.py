"""The files that other tools read: workflows, forms, hooks, the citation. Each is sound and names real things."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in load(workflow)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_make_and_may_only_read(workflow: Path) -> None:
    settings = load(workflow)
    assert settings["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 60 for job in settings["jobs"].values())
    made = [words for step in steps(workflow) for words in re.findall(r"^make (\S+)", step.get("run", ""))]
    assert made
    assert set(made) <= TARGETS
    # A version or a commit, never a branch that somebody else moves. The index asks for its action's release branch.
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert all(re.search(r"@(v\d+|[0-9a-f]{40}|release/v1)$", action) for action in used), used


def test_there_is_a_workflow_for_style_tests_pages_and_releases() -> None:
    assert [path.stem for path in WORKFLOWS] == ["docs", "lint", "release", "tests"]


def test_the_tests_run_on_each_python_that_the_package_promises() -> None:
    promised = re.findall(r"Programming Language :: Python :: (3\.\d+)", PYPROJECT)
    matrix = load(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix["python"] == promised


def test_only_the_job_that_publishes_may_ask_for_an_identity() -> None:
    settings = load(ROOT / ".github" / "workflows" / "release.yml")
    # YAML 1.1 reads the key `on` as true
    assert settings[True] == {"push": {"tags": ["v*"]}}
    assert settings["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert "permissions" not in settings["jobs"]["build"]
    assert settings["jobs"]["publish"]["needs"] == "build"


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_a_form_has_a_name_a_description_and_fields_of_their_own(form: Path) -> None:
    settings = load(form)
    assert {"name", "description", "body"} <= set(settings)
    fields = [entry for entry in settings["body"] if entry["type"] != "markdown"]
    assert len({entry["id"] for entry in fields}) == len(fields) > 0
    assert all(entry["attributes"]["label"] for entry in fields)
    assert any(entry["validations"]["required"] for entry in fields)


def test_there_are_forms_for_bugs_features_and_questions() -> None:
    assert [path.stem for path in FORMS] == ["bug", "feature", "question"]


def test_dependencies_are_watched() -> None:
    updates = load(ROOT / ".github" / "dependabot.yml")["updates"]
    assert {entry["package-ecosystem"] for entry in updates} == {"pip", "github-actions"}


def test_hooks_are_pinned_and_local_ones_call_make() -> None:
    repositories = load(ROOT / ".pre-commit-config.yaml")["repos"]
    hooks = {hook["id"]: hook for repository in repositories for hook in repository["hooks"]}
    assert {"check-added-large-files", "check-yaml", "codespell", "end-of-file-fixer", "format", "lint"} == set(hooks)
    for repository in repositories:
        if repository["repo"] == "local":
            assert all(re.fullmatch(r"make (\S+)", hook["entry"])[1] in TARGETS for hook in repository["hooks"])
        else:
            assert re.fullmatch(r"v\d+(\.\d+)+", repository["rev"])


def test_spelling_is_checked_by_one_version() -> None:
    (hook,) = [entry for entry in load(ROOT / ".pre-commit-config.yaml")["repos"] if "codespell" in entry["repo"]]
    commands = [step.get("run", "") for step in steps(ROOT / ".github" / "workflows" / "lint.yml")]
    (command,) = [command for command in commands if "codespell" in command]
    assert command == f"pipx run codespell=={hook['rev'].removeprefix('v')}"


def test_the_citation_names_the_software_and_both_papers() -> None:
    citation = load(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors", "version", "license", "references"} <= set(citation)
    assert re.search(rf'^version = "{re.escape(citation["version"])}"$', PYPROJECT, flags=re.MULTILINE)
    assert f'license = "{citation["license"]}"' in PYPROJECT
    assert citation["authors"] == [{"name": "The ippo-lightning developers"}]
    papers = {paper["identifiers"][0]["value"]: paper["authors"] for paper in citation["references"]}
    assert {name: [author["family-names"] for author in authors] for name, authors in papers.items()} == {
        "arXiv:2604.01597": ["Shu", "Zhang", "Hullman"],
        "arXiv:2505.19281": ["Hu", "Wu", "Ye", "Forsyth", "Zou", "Jiang", "Ma", "Zhao"],
    }
