# `make say TEXT="Hello world."` and `make test` do all the set-up they need, in .venv.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
# The first interpreter that is new enough; override with `make PYTHON=/path/to/python3 ...`.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(if $(shell command -v $(name)),$(name))))
PIP := $(PY) -m pip install --disable-pip-version-check -c constraints.txt
CORE := $(VENV)/.core
DEV := $(VENV)/.dev
# Small models on few cores: a second OpenMP thread costs more than it gives.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup core say test test-browser test-long lint bench bench-peers train clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(PY):
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "quaver needs Python 3.11 or newer; set PYTHON=..." >&2; exit 2; }
	"$(PYTHON)" -m venv $(VENV)

# Core: what `quaver say` needs. The link lets pyright find the package (see pyproject.toml).
$(CORE): pyproject.toml constraints.txt | $(PY)
	$(PIP) -q --upgrade pip
	$(PIP) -e .
	mkdir -p $(VENV)/src && ln -sfn ../.. $(VENV)/src/quaver
	@touch $@

# Dev: core plus what the tests, the training, the judges and the server need.
$(DEV): $(CORE)
	$(PIP) -e ".[test,train,eval,serve,batch]"
	@touch $@

core: $(CORE)

setup: $(DEV) ## make .venv and install everything that tests and training need

# Through the environment and unexpanded: quotes, dollars and backticks in TEXT are text.
unexport TEXT RECIPE
say: export QUAVER_TEXT := $(value TEXT)
say: $(CORE) ## TEXT="Hello world." speaks into hello-world.wav
	@"$(VENV)/bin/quaver" say -- "$$QUAVER_TEXT"

test: $(DEV) ## run the tests (about ten minutes on two slow cores)
	"$(PY)" -m pytest -m "not long and not browser"

# By themselves: Playwright leaves an event loop running in its thread, which other tests of asyncio cannot bear.
test-browser: $(DEV) ## run the tests of the web pages in Chromium (installed with apt where it is missing)
	$(PIP) -q -e ".[test,serve,demo,eval,browser]"
	@command -v chromium >/dev/null || { command -v apt-get >/dev/null && apt-get install -y chromium; } || echo "no Chromium: these tests will skip" >&2
	"$(PY)" -m pytest -m browser tests/app/browser

test-long: $(DEV) ## run the tests that train
	"$(PY)" -m pytest -m long --timeout 5400

lint: $(DEV) ## ruff, pyright, import-linter
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	"$(PY)" -m pyright
	"$(VENV)/bin/lint-imports" --no-cache

bench: $(DEV) ## measure speed beside the peers that are installed; rewrites docs/benchmarks.md (ROWS="lm codec": some)
	"$(PY)" -m benchmarks $(ROWS) --docs

# Their own packages over ours, so that torch and all else is the same build on both sides of a comparison.
PEERS := $(VENV)/peers
bench-peers: $(DEV) ## install what bench compares with, into .venv/peers
	"$(PY)" -m venv "$(PEERS)"
	"$(PY)" benchmarks/peers.py "$(PEERS)" "$(VENV)"

train: export QUAVER_RECIPE := $(value RECIPE)
train: $(DEV) ## RECIPE=recipes/NAME.yaml trains that recipe into runs/NAME
	@"$(VENV)/bin/quaver" train "$$QUAVER_RECIPE"

clean: ## forget the environment and the caches (never data, models or runs)
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
