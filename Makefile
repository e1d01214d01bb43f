# One place for every command: each target sets up what it needs, and a second run is fast.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup chat test test-long bench lint format clean

PYTHON ?= python3
STAMP := .venv/.installed
RUN := .venv/bin

help:            ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

setup: $(STAMP)  ## create .venv and install partita with its development tools

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "partita needs Python 3.11 or newer: make setup PYTHON=python3.11"; exit 2; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,mlx,torch]'
	@touch $(STAMP)

chat: setup      ## fetch the default model and chat with it; PROMPT="…" answers once, MODEL=… picks another
ifdef PROMPT
	@PROMPT_TEXT="$$PROMPT" && .venv/bin/python -m partita_apps.cli chat $(MODEL) -p "$$PROMPT_TEXT"
else
	@.venv/bin/python -m partita_apps.cli chat $(MODEL)
endif

export PROMPT

lint: setup      ## format check, lint, types
	@.venv/bin/python -m ruff format --check .
	@.venv/bin/python -m ruff check .
	@.venv/bin/python -m pyright

format: setup    ## rewrite the sources in the project's format
	@.venv/bin/python -m ruff format .
	@.venv/bin/python -m ruff check --fix .

test: lint       ## what CI runs: format, lint, types and the suite
	@.venv/bin/python -m pytest -m "not slow"

test-long: setup ## the tests that take minutes
	@.venv/bin/python -m pytest -m slow

bench: setup     ## measure decode, prefill, cache and start-up here
	@for what in decode prefill cache startup; do .venv/bin/python -m partita_apps.cli bench $$what; done

clean:           ## remove the environment and caches
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
