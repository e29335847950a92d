"""The wheel holds the whole library, once, and works where the checkout is not."""

from __future__ import annotations

import ast
import itertools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "ippo_lightning"
LINKED = ("callbacks", "experiments")
"""Folders at the top that are packages inside `ippo_lightning`."""
SETTINGS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
)
USED_IF_INSTALLED = {"jaxtyping"}  # checks shapes in tests; the library works without it


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    """Run a program in `folder` and return what it printed; the test fails with all of it where the program does."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def expected_contents() -> dict[str, bytes]:
    """Every file that a user needs: its path in the wheel, and its bytes."""
    contents = {}
    linked = [(REPOSITORY / name, f"ippo_lightning/{name}") for name in LINKED]
    for folder, prefix in ((PACKAGE, "ippo_lightning"), *linked):
        for path in folder.rglob("*"):
            name = f"{prefix}/{path.relative_to(folder).as_posix()}"
            through_the_link = folder == PACKAGE and name.split("/")[1] in LINKED
            if path.is_file() and "__pycache__" not in path.parts and not through_the_link:
                contents[name] = path.read_bytes()
    return contents


def copied_checkout(folder: Path) -> Path:
    return Path(shutil.copytree(REPOSITORY, folder / "checkout", symlinks=True, ignore=LEFT_OUT))


def built_wheel(folder: Path, *, links: bool = True, by_source_distribution: bool = False) -> Path:
    """Build a wheel without network, from a copy, so that nothing is left in the checkout."""
    checkout = copied_checkout(folder)
    for name in () if links else LINKED:
        link = checkout / "ippo_lightning" / name
        target = link.readlink()
        link.unlink()
        link.write_text(str(target))  # what git leaves where the file system or the user's settings know no links
    # Without --wheel, build makes a source distribution first and the wheel out of that.
    kind = [] if by_source_distribution else ["--wheel"]
    run("-m", "build", "--no-isolation", *kind, "--outdir", folder / "dist", checkout, folder=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An otherwise empty folder with the wheel installed in it."""
    folder = tmp_path_factory.mktemp("installed")
    wheel, target = built_wheel(folder), folder / "site"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel, folder=folder)
    return target


def test_the_list_of_packages_is_the_folders_on_disk(library_modules: dict[str, Path]) -> None:
    folders = {
        name if path.name == "__init__.py" else name.rpartition(".")[0] for name, path in library_modules.items()
    }
    assert sorted(SETTINGS["tool"]["setuptools"]["packages"]) == sorted(folders)


@pytest.mark.parametrize("name", LINKED)
def test_the_checkout_links_a_folder_at_the_top_into_the_package(name: str) -> None:
    link = PACKAGE / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{name}", "an absolute link would work on one machine only"


@pytest.mark.parametrize(
    "way",
    [{}, {"links": False}, {"by_source_distribution": True}],
    ids=["checkout", "checkout without links", "source distribution"],
)
def test_the_wheel_holds_every_file_of_the_library_once_and_nothing_else(way: dict[str, bool], tmp_path: Path) -> None:
    with zipfile.ZipFile(built_wheel(tmp_path, **way)) as wheel:
        names = wheel.namelist()
        assert len(names) == len(set(names))
        contents = {name: wheel.read(name) for name in names if ".dist-info/" not in name}
    assert contents == expected_contents()
    assert "ippo_lightning/py.typed" in names
    assert any(re.fullmatch(r"ippo_lightning/report/.*\.j2", name) for name in names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_installed_wheel_works_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    program = (
        "import ippo_lightning, ippo_lightning.callbacks as callbacks\n"
        "print(ippo_lightning.__file__, callbacks.__file__, ippo_lightning.__version__, *callbacks.__all__)"
    )
    printed = run("-c", program, folder=elsewhere, PYTHONPATH=str(installed)).split()
    assert printed[0] == str(installed / "ippo_lightning" / "__init__.py")
    assert printed[1] == str(installed / "ippo_lightning" / "callbacks" / "__init__.py")
    assert printed[2] == SETTINGS["project"]["version"]
    assert printed[3:], "ippo_lightning.callbacks names nothing in __all__"


def test_the_installed_command_answers(installed: Path, tmp_path: Path) -> None:
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "ippo = ippo_lightning.cli.main:main" in entry_points.read_text()
    program = "import sys; from ippo_lightning.cli.main import main; sys.exit(main(['--help']))"
    assert "usage: ippo" in run("-c", program, folder=tmp_path, PYTHONPATH=str(installed))


IPPO = "import sys; from ippo_lightning.cli.main import main; sys.exit(main(sys.argv[1:]))"
LONG_FORM = [
    f"--config=experiments/{name}.yaml" for name in ("base/ppo", "tasks/arithmetic", "models/lora", "methods/ippo")
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["--task", "arithmetic", "--model", "lora", "--method", "ippo"], id="short"),
        pytest.param(LONG_FORM, id="long"),
    ],
)
def test_the_installed_command_finds_the_packaged_experiments(
    words: list[str], installed: Path, tmp_path: Path
) -> None:
    printed = run("-c", IPPO, "fit", *words, "--print_config", folder=tmp_path, PYTHONPATH=str(installed))
    settings = yaml.safe_load(printed)
    weights = Path(settings["model"]["init_args"]["policy"]["init_args"]["pretrained"])
    assert weights == installed / "ippo_lightning" / "experiments" / "models" / "arithmetic_llama"
    assert settings["loop"]["run_dir"] == "runs/arithmetic/lora/ippo"


@pytest.mark.slow
def test_the_installed_command_trains_the_packaged_model(installed: Path, tmp_path: Path) -> None:
    words = ["fit", "--task", "arithmetic", "--method", "ippo", "--loop.max_iterations", "1"]
    words += ["--loop.evaluate_first", "false", "--data.init_args.batch_size", "4"]
    words += [f"--data.init_args.task.init_args.num_{name}=4" for name in ("validation", "test")]
    run("-c", IPPO, *words, folder=tmp_path, PYTHONPATH=str(installed))
    assert (tmp_path / "runs" / "arithmetic" / "ippo" / "results.json").is_file()


@pytest.fixture(scope="module")
def ippo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in a new environment: the wheel is installed, its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    wheel, environment = built_wheel(folder), folder / "venv"
    run("-m", "venv", "--without-pip", environment, folder=folder)
    python = environment / "bin" / "python"
    (packages,) = environment.glob("lib/python*/site-packages")
    # A path alone: files such as that of an editable install, which lie there, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    install = ["-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    run(*install, "--force-reinstall", wheel, folder=folder)
    return environment / "bin" / "ippo"


SHORT = [
    "--loop.max_iterations=2",
    "--loop.evaluate_first=false",
    "--data.init_args.batch_size=4",
    "--data.init_args.task.init_args.num_test=4",
    "--data.init_args.task.init_args.num_influence_demonstrations=4",
]


@pytest.mark.slow
def test_the_installed_wheel_takes_a_newcomer_from_an_empty_folder_to_a_model(ippo: Path, tmp_path: Path) -> None:
    def command(*words: str, folder: Path) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [ippo, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "Run it:" in command("init", "project", folder=tmp_path)
    project = tmp_path / "project"
    assert "tasks\tgsm8k\t" in command("experiments", folder=project)
    ending = command("fit", "--config", "experiment.yaml", *SHORT, folder=project).partition("Next:\n")[2]
    commands = [line.split()[1:] for line in ending.splitlines()]
    assert [words[0] for words in commands] == ["evaluate", "report", "export"]
    for words in commands:
        command(*words, folder=project)
    run_folder = project / "runs" / "ippo"
    assert (run_folder / "report" / "report.html").is_file()
    assert (run_folder / "export" / "model.safetensors").is_file()
    config = yaml.safe_load((run_folder / "config.yaml").read_text(encoding="utf-8"))
    weights = Path(config["model"]["init_args"]["policy"]["init_args"]["pretrained"])
    assert weights.is_relative_to(ippo.parent.parent)  # of the environment, and not of this checkout


def outside_imports(path: Path) -> set[str]:
    """Top-level names that a file imports, wherever in the file, without the standard library and the project."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"ippo_lightning"}


def normalised(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[]", requirement)[0]).lower()


def test_everything_the_library_imports_is_declared(library_files: list[Path]) -> None:
    project = SETTINGS["project"]
    extras = [entry for name, entry in project["optional-dependencies"].items() if name not in ("dev", "docs")]
    declared = {normalised(requirement) for requirement in itertools.chain(project["dependencies"], *extras)}
    distributions = packages_distributions()
    undeclared = {
        f"{path.relative_to(REPOSITORY)}: {name}"
        for path in library_files
        for name in outside_imports(path)
        if name not in USED_IF_INSTALLED
        and not declared & {normalised(distribution) for distribution in distributions.get(name, [name])}
    }
    assert not undeclared


def test_every_declared_dependency_has_a_tested_version() -> None:
    lines = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all("==" in line for line in lines)
    pinned = [normalised(line) for line in lines]
    assert len(pinned) == len(set(pinned))
    project = SETTINGS["project"]
    declared = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert {normalised(requirement) for requirement in declared} <= set(pinned)
