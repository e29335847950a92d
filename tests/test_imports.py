"""Importing is cheap, needs no network, and works from whichever module a program starts with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Runs before the imports under test: any use of the network ends the program with the event's name.
NO_NETWORK = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise SystemExit(f"network: {event} {arguments[1:]}")

sys.addaudithook(refuse)
"""

# Each module is imported as the first of the project's, so that a cycle shows from every side. The outside libraries
# stay loaded: they are slow to import and not under test.
IMPORT_EACH_FIRST = """
import importlib, json, traceback

failures = {}
for name in json.loads(sys.argv[1]):
    for loaded in [key for key in sys.modules if key.partition(".")[0] == "ippo_lightning"]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except Exception:
        failures[name] = traceback.format_exc(limit=-3)
print(json.dumps(failures))
"""


def fresh_interpreter(program: str, *arguments: str) -> str:
    """Run `program` in a new interpreter on the checkout and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_network_guard_sees_a_look_up() -> None:
    program = (
        NO_NETWORK
        + "import socket\ntry:\n    socket.getaddrinfo('localhost', 80)\nexcept SystemExit as end:\n    print(end)"
    )
    assert fresh_interpreter(program).startswith("network: socket.getaddrinfo")


@pytest.mark.parametrize("which", ["rooms", pytest.param("modules", marks=pytest.mark.slow)])
def test_each_can_be_the_first_import_and_needs_no_network(which: str, library_modules: dict[str, Path]) -> None:
    names = sorted(name for name, path in library_modules.items() if which == "modules" or path.name == "__init__.py")
    assert {"ippo_lightning.records", "ippo_lightning.callbacks"} <= set(names)
    failures = json.loads(fresh_interpreter(NO_NETWORK + IMPORT_EACH_FIRST, json.dumps(names)).splitlines()[-1])
    assert not failures, "\n".join(f"{name}: {trace}" for name, trace in failures.items())


def test_importing_the_package_alone_loads_no_heavy_library() -> None:
    heavy = {"torch", "numpy", "transformers", "lightning", "datasets", "peft", "matplotlib", "scipy"}
    program = "import sys, ippo_lightning, json; print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    assert not heavy & set(json.loads(fresh_interpreter(program)))


def test_listing_the_package_shows_the_lazy_names_and_a_wrong_one_is_an_attribute_error() -> None:
    program = (
        "import ippo_lightning as package\n"
        "assert set(package.__all__) <= set(dir(package)), dir(package)\n"
        "print(hasattr(package, 'PPOModul'), package.UserError is package.UserError)\n"
        "from ippo_lightning.errors import UserError\n"
        "assert package.UserError is UserError"
    )
    assert fresh_interpreter(program).split() == ["False", "True"]
