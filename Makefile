# Every target sets up what it needs: python3 (3.11 or newer) and make are enough.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install --constraint constraints.txt
INSTALLED := .venv/.installed
# Two processes at once. A file stays in one of them: its tests share servers and models.
BY_FILE := --numprocesses 2 --dist loadfile --no-loadscope-reorder
BY_TEST := --numprocesses 2 --dist load --maxschedchunk 1

.DEFAULT_GOAL := help
.PHONY: help install serve test test-crash test-install soak screenshots lint format type contracts docker-lint check bench bench-gpu clean

help: ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## /  make \1: /p' Makefile

install: $(INSTALLED) ## Set up .venv with everything, if it is missing or out of date.

serve: $(INSTALLED) ## Serve the demo tasks on http://127.0.0.1:8000 (ARGS="--port 9000").
	@$(BIN)/foreword serve --demo $(ARGS)

test: $(INSTALLED) ## Run the tests, in two processes; with ARGS="-k store -x" in one.
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m "not crash and not install" $(or $(ARGS),$(BY_FILE))

test-crash: $(INSTALLED) ## Crash tests: kills, power cuts and disk errors at every system call of the store (minutes).
	@command -v strace > /dev/null || echo "The crash tests need strace and are skipped without it: apt-get install strace"
	@$(BIN)/pytest -m crash -rs tests/crash $(or $(ARGS),$(BY_TEST))

test-install: $(INSTALLED) ## Build the wheels, install them into an empty environment and serve from there (minutes).
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m install tests/integration/test_wheels.py $(ARGS)

soak: $(INSTALLED) ## Mixed load for 30 minutes, with faults and little memory (ARGS="--minutes 5 --seed 1").
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak $(ARGS)

screenshots: $(INSTALLED) ## Take the pictures in docs/images again (minutes; needs chromium and fonts-inter).
	@$(BIN)/python -m tests.clients.console.screenshots

bench-gpu: ## On a CUDA machine: run GPU checks and benchmarks, with the python3 that is there.
	@$(PYTHON) -m tests.gpu.benchmarks $(ARGS)

lint: $(INSTALLED) ## Check style and format.
	@$(BIN)/ruff check && $(BIN)/ruff format --check

format: $(INSTALLED) ## Fix style and format.
	@$(BIN)/ruff check --fix && $(BIN)/ruff format

type: $(INSTALLED) ## Check the types.
	@$(BIN)/mypy

contracts: $(INSTALLED) ## Check which module may import which.
	@$(BIN)/lint-imports

docker-lint: $(INSTALLED) ## Check the Dockerfile, compose files, manifests, alerts and the dashboard.
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/pytest -q -rs tests/docker/test_deployment.py

check: lint type contracts docker-lint test test-crash test-install ## Run all checks and tests: what CI runs.

bench: $(INSTALLED) ## Measure the CPU tables of docs/benchmarks.md (VLLM=DIR with vLLM, ARGS="--rounds 5").
	@$(BIN)/foreword bench compare $(if $(VLLM),--vllm $(VLLM)) --output build/bench.json $(ARGS)

clean: ## Remove .venv and every cache. The default model in ~/.cache/foreword stays.
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(INSTALLED): pyproject.toml clients/python/pyproject.toml clients/bench/pyproject.toml clients/tuner/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Foreword needs Python 3.11 or newer. Name one with: make PYTHON=python3.11")'
	@echo "Setting up .venv: a few minutes, once."
	@$(PYTHON) -m venv .venv
	@$(PIP) torch
	@$(PIP) --editable '.[dev]' --editable clients/python --editable 'clients/bench[plots]' --editable clients/tuner
	@touch $@
	@echo "Done: 'make serve' starts the server, 'make test' runs the tests."
