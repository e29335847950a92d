"""What every test can rely on: no network, a fixed seed, and no state left over from the test before."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before any import of the libraries that read them.
# One thread per worker: two workers with a thread pool each would fight for the same cores. A sum over one thread also
# has the same rounding on every machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    # what tests run is not noted among the user's own runs, and does not depend on them
    XDG_STATE_HOME=tempfile.mkdtemp(prefix="ippo-state-"),
)
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

# Each call of these modules checks the shapes in its signature. Before the library's first import, or the hook is late.
CHECKED_MODULES = ["masked", "log_probs", "selection"]
install_import_hook([f"ippo_lightning.maths.{name}" for name in CHECKED_MODULES], "shape_checker.check")

REPOSITORY = Path(__file__).resolve().parent.parent
LINKED = ("callbacks", "experiments")
"""Folders at the top that are packages inside `ippo_lightning`."""
SEED = 0

# The same examples on every run: a failure that one run sees, the next one sees too.
hypothesis.settings.register_profile("repository", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repository")


def pytest_configure(config: pytest.Config) -> None:
    # pytest-randomly may shuffle the tests. Its seeds, new in each run, must not replace those of `fixed_seed`.
    if hasattr(config.option, "randomly_reset_seed"):
        config.option.randomly_reset_seed = False


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["XDG_STATE_HOME"], ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none here")


@pytest.fixture(
    params=[torch.OutOfMemoryError("out of memory"), MemoryError(), RuntimeError("not enough memory")],
    ids=lambda error: type(error).__name__,
)
def memory_error(request: pytest.FixtureRequest) -> Exception:
    """Return what a device, Python or the CPU's allocator raises if memory runs out."""
    error: Exception = request.param
    return error


@pytest.fixture(autouse=True)
def own_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget the modules that a test imported from a temporary folder: another test's file of that name is another."""
    before = set(sys.modules)
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(folder):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """Start each test from seed 0 in every generator, and give the generators back as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


@pytest.fixture(autouse=True)
def restored_globals() -> Iterator[None]:
    """Undo what a test may have changed for the whole process."""
    environment = dict(os.environ)
    folder = Path.cwd()
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.set_grad_enabled(True)
    os.chdir(folder)
    if dict(os.environ) != environment:
        os.environ.clear()
        os.environ.update(environment)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def library_files() -> list[Path]:
    """Every Python file of the library, once: linked folders through their own place, not through the link."""
    links = [("ippo_lightning", folder) for folder in LINKED]
    files = [path for folder in ("ippo_lightning", *LINKED) for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    return [path for path in files if path.relative_to(REPOSITORY).parts[:2] not in links]


@pytest.fixture(scope="session")
def library_modules(library_files: list[Path]) -> dict[str, Path]:
    """The library's modules by the name that a user imports."""
    names = {}
    for path in library_files:
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        prefix = () if parts[0] == "ippo_lightning" else ("ippo_lightning",)
        names[".".join([*prefix, *parts]).removesuffix(".__init__")] = path
    return names


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: `IPPO_DATA`, or `shared/data` beside the checkout; skips where neither exists."""
    folder = Path(os.environ.get("IPPO_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; set IPPO_DATA to the folder that contains them")
    return folder
