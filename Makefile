# `make help` lists the targets. What runs clawbus runs in .venv-run (70 MB), what works on it in .venv (600 MB: the tests, the
# type checker, the plots). Each is made from the locks on first use.
#
#   make test ARGS="-k sweep"        more arguments for pytest
#   make demo RUNTIME=docker         the demo in containers (BASE_IMAGE=... to build on another image)
#   make demo AGENT=scripted         the demo with an agent that speaks the Agent Client Protocol
#   make test PYTHON=python3.13      another interpreter; the environment is made anew when it differs

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
RUNTIME ?= process
BASE_IMAGE ?=
TAG ?=
AGENT ?=
ARGS ?=
MINUTES ?= 10
FUZZ ?= 100000
SEED ?=
UPGRADE ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made
RUN_VENV := .venv-run
RUN_BIN := $(RUN_VENV)/bin
RUN_STAMP := $(RUN_VENV)/.made
# Tests start thousands of processes. Where the environment forbids bytecode, each of them would compile all of clawbus.
WITH_BYTECODE := env -u PYTHONDONTWRITEBYTECODE
# Only `make lock` needs it, in an environment of its own.
UV := uv==0.13.8

# An interpreter that was asked for by name wins over the one an environment was made with; without asking, it stays as it is.
ifneq ($(origin PYTHON),file)
.PHONY: $(foreach stamp,$(STAMP) $(RUN_STAMP),$(if $(filter-out $(PYTHON),$(shell cat $(stamp) 2>/dev/null || echo none)),$(stamp)))
endif

.PHONY: help demo clawbus test unit soak lint fmt types image bench lock venv clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS=$$'\t' read -r name text; do printf '  %-8s %s\n' "$$name" "$$text"; done

$(STAMP): locks/dev.txt locks/build.txt pyproject.toml
	@locks/make-venv $(VENV) '$(PYTHON)' locks/dev.txt
	@printf '%s' '$(PYTHON)' > $@

$(RUN_STAMP): locks/runtime.txt locks/build.txt pyproject.toml
	@locks/make-venv $(RUN_VENV) '$(PYTHON)' locks/runtime.txt
	@printf '%s' '$(PYTHON)' > $@

demo: $(RUN_STAMP) ## the whole bus in a temporary folder, one agent killed in mid-turn, nothing lost
	@RUNTIME='$(RUNTIME)' AGENT='$(AGENT)' BASE_IMAGE='$(BASE_IMAGE)' $(RUN_BIN)/python -m demo $(ARGS)

clawbus: $(RUN_STAMP) ## the command .venv-run/bin/clawbus, without the developers' tools
	@echo 'to have it on the path of this shell: export PATH="$(CURDIR)/$(RUN_BIN):$$PATH"'

venv: $(STAMP) ## .venv with the developers' tools, when a lock or pyproject.toml changed

# A file's tests stay in one worker: they may share a fixture and rely on their order.
test: $(STAMP) ## the tests, on every core (ARGS="-k name")
	@$(WITH_BYTECODE) $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

unit: $(STAMP) ## the unit suite alone, on every core: about a minute (ARGS="-k name")
	@$(WITH_BYTECODE) $(BIN)/pytest tests/unit -n auto -o faulthandler_timeout=0 --dist loadfile --no-loadscope-reorder $(ARGS)

soak: $(STAMP) ## faults in simulation, on real processes and containers (MINUTES=10 FUZZ=100000 SEED=n)
	@$(BIN)/python -m tests.soak --minutes $(MINUTES) --fuzz $(FUZZ) $(if $(SEED),--seed $(SEED))

lint: $(STAMP) ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

fmt: $(STAMP) ## let ruff format and fix what it safely can
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

types: $(STAMP) ## the type check, strict for what ships
	@$(BIN)/basedpyright --pythonpath $(BIN)/python

image: $(RUN_STAMP) ## the image of daemon and runner for Kubernetes (BASE_IMAGE=... TAG=...)
	@$(RUN_BIN)/python deploy/kubernetes/build_image.py $(if $(BASE_IMAGE),--base '$(BASE_IMAGE)') $(if $(TAG),--tag '$(TAG)')

bench: $(STAMP) ## the figures, each beside the floor of the same run (ARGS="round-trip drain")
	@$(BIN)/python -m bench $(if $(BASE_IMAGE),--base-image '$(BASE_IMAGE)') $(ARGS)

# Pins stay as they are unless UPGRADE=1. runtime.txt leads; the others follow its versions. `fewest`: one version of a package
# for every Python, so that a lock pins each name once.
lock: ## write the locks anew from pyproject.toml (UPGRADE=1 moves the pins)
	@mkdir -p build locks
	@[ -x build/lock-venv/bin/uv ] || { $(PYTHON) -m venv build/lock-venv && build/lock-venv/bin/python -m pip --disable-pip-version-check --quiet --quiet install '$(UV)'; }
	@compile() { build/lock-venv/bin/uv --no-config pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --generate-hashes --no-annotate --no-header $(if $(UPGRADE),--upgrade) "$$@" > /dev/null; }; \
	compile pyproject.toml --output-file locks/runtime.txt; \
	compile --group runner --constraint locks/runtime.txt --output-file container_runner/requirements.lock; \
	compile --group build --constraint locks/runtime.txt --output-file locks/build.txt; \
	compile pyproject.toml --extra otel --constraint locks/runtime.txt --output-file locks/otel.txt; \
	compile pyproject.toml --extra otel --group dev --group bench --constraint locks/otel.txt --constraint locks/runtime.txt --constraint locks/build.txt --output-file locks/dev.txt

clean: ## remove what the other targets made, .venv and .venv-run too
	@rm -rf $(VENV) $(RUN_VENV) build dist demo-data bench/out .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
