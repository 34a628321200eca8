# `make run` sets up and runs the whole pipeline; `make test` sets up and runs the tests. A second call installs nothing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Nothing here reports home; prosemill/telemetry.py says the same to every library.
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1

.PHONY: run up test types pytest soak lint ui bench clean help

run: $(VENV)/run.done ## Raw text to a registered model: set up, run what has changed, show the result
	python -m flows
	prosemill report

up: $(VENV)/run.done ## All servers of this workspace: Prefect with its deployments, MLflow, the service; Ctrl-C ends them
	prosemill up

test: $(VENV)/test.done ## Linters, types and all tests; FILES=tests/tokens: these tests alone
	$(if $(FILES),,ruff check . && ruff format --check .)
	@$(MAKE) --no-print-directory --jobs 2 $(if $(FILES),,types) pytest

types: $(VENV)/test.done # beside the tests, as it takes one processor a minute or two; it prints nothing but errors
	@mypy --no-error-summary

pytest: $(VENV)/test.done
	pytest --numprocesses auto --maxprocesses 4 --max-worker-restart 0 $(FILES)

soak: $(VENV)/test.done ## Long campaigns of attacks, some hours; CAMPAIGNS="kills promotions" SEED=7: these alone, from another seed
	python -m benchmarks.soak $(CAMPAIGNS) --seed $(or $(SEED),0)

lint: $(VENV)/test.done ## Linters and types alone
	ruff check .
	ruff format --check .
	mypy

ui: $(VENV)/run.done ## Open the page of tracked runs
	prosemill ui

bench: $(VENV)/test.done ## Benchmarks that need no champion, over an hour and a half; benchmarks/RESULTS.md has the others and larger runs
	dvc repro download
	python -m benchmarks

clean: ## Forget the environment and unfinished work; data, models and tracked runs stay
	rm -rf $(VENV) .shards .checkpoints

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# pip takes torch, as its settings say where this machine's build of it is (a mirror, an index of builds for CPUs), and uv; uv takes
# the two hundred others in a minute, where pip takes several. pip takes those too where its settings name what uv does not know.
define install
uv pip install --quiet --python $(VENV)/bin/python --compile-bytecode --constraint constraints.txt --editable $(1) \
	|| pip install --quiet --constraint constraints.txt --editable $(1)
endef

$(VENV)/run.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --constraint constraints.txt torch uv
	$(call install,.)
	touch $@

$(VENV)/test.done: $(VENV)/run.done
	$(call install,'.[test]')
	touch $@
