# One place for every command: each target sets up what it needs, and a second run is fast.
.DEFAULT_GOAL := help
.PHONY: help setup chat test test-long test-cpus interop agents bench bench-charts bench-serve bench-page bench-gpu screenshots example-shakespeare lint format docs clean

PYTHON_IN_VENV := .venv/bin/python
export PYTHON PEERS AGENTS

# What is typed as PROMPT="…" and MODEL=… reaches the program through the environment, character by character: `value`
# keeps make from reading a $ in it, and the shell sees only the variable's name. A PROMPT that is merely exported is
# not meant for us: it is how some shells keep their own.
CHAT :=
ifeq ($(origin MODEL),command line)
override MODEL := $(value MODEL)
export MODEL
CHAT += "$$MODEL"
endif
ifeq ($(origin PROMPT),command line)
override PROMPT := $(value PROMPT)
export PROMPT
CHAT += --prompt="$$PROMPT"
endif

help:            ## this list
	@awk -F ' *## ' '/^[a-z-]+: .*## /{split($$1, name, ":"); printf "  make %-20s %s\n", name[1], $$2}' Makefile

setup:           ## make .venv and install partita with its development tools
	@.ci/setup

chat: setup      ## talk with the default model; PROMPT="…" answers once, MODEL=… picks another
	@$(PYTHON_IN_VENV) -m partita_apps.cli chat $(CHAT)

test: lint       ## what CI runs: format, lint, types and the suite, for which a browser is found or installed
	@PARTITA_BROWSER="$$(.ci/browser)" && export PARTITA_BROWSER && $(PYTHON_IN_VENV) -m pytest -m "not slow and not interop and not agents" --numprocesses=auto --maxprocesses=4 --dist=worksteal

test-long: setup ## the tests that take minutes, and the property tests on examples that differ from run to run
	@$(PYTHON_IN_VENV) -m pytest -m "slow or (hypothesis and not interop)" --hypothesis-profile=search

test-cpus: setup ## the numeric tests as on CPUs with fewer instructions than this one: AVX2, SSE
	@$(PYTHON_IN_VENV) .ci/cpus.py $(CPUS)

interop: setup   ## judge our GGUF files with llama.cpp, which is built for ten minutes; PEERS=… is a Python that has it
	@PARTITA_PEER_PYTHON="$$(.ci/peers)" && export PARTITA_PEER_PYTHON && $(PYTHON_IN_VENV) -m pytest -m interop

agents: setup    ## judge the server with Codex, Claude Code, pi, opencode, aider and llm, 2 GB; AGENTS=… is a folder of them
	@PARTITA_AGENTS="$$(.ci/agents)" && export PARTITA_AGENTS && $(PYTHON_IN_VENV) -m pytest -m agents

bench: setup     ## measure decode, prefill, cache and start-up on this machine
	@for what in decode prefill cache startup; do $(PYTHON_IN_VENV) -m partita_apps.cli bench $$what || exit; done

bench-charts: setup ## draw the pictures of docs/benchmarks.md, a quarter of an hour; PEERS=… puts llama.cpp beside ours
	@.ci/bench-charts $(PYTHON_IN_VENV)

bench-serve: setup ## what the server gives 1 to 64 clients, some minutes; PEERS=… puts llama.cpp's server beside ours
	@$(PYTHON_IN_VENV) -m partita_apps.cli bench serve --clients 1,4,8,16,64 $(if $(PEERS),--against llama.cpp --peer-python $(PEERS))

bench-page: setup ## the page in a real browser: first paint, a chat of 500 turns, a reply of 20,000 tokens, some minutes
	@$(PYTHON_IN_VENV) -m partita_apps.cli bench page

bench-gpu: setup ## on a GPU: its tests, then decode steps by context and format, and the peers that are there
	@.ci/bench-gpu $(PYTHON_IN_VENV)

screenshots: setup ## take the pictures of the page in docs/images, with replies of the default model
	@$(PYTHON_IN_VENV) docs/images/page.py

example-shakespeare: setup ## fine-tune the default model on Shakespeare's plays, a quarter of an hour on one core; again: go on
	@$(PYTHON_IN_VENV) examples/shakespeare/run.py

lint: setup      ## check format, lint and types
	@$(PYTHON_IN_VENV) -m ruff format --check .
	@$(PYTHON_IN_VENV) -m ruff check .
	@$(PYTHON_IN_VENV) -m pyright

format: setup    ## rewrite the sources in the project's format
	@$(PYTHON_IN_VENV) -m ruff format .
	@$(PYTHON_IN_VENV) -m ruff check --fix .

docs: setup      ## write docs/api.md from the docstrings, docs/clients.md, docs/models.md, and the page's colours of code
	@$(PYTHON_IN_VENV) docs/api.py
	@$(PYTHON_IN_VENV) docs/clients.py
	@$(PYTHON_IN_VENV) docs/models.py
	@$(PYTHON_IN_VENV) docs/code_css.py

clean:           ## remove .venv and what tools have cached here
	rm -rf .venv .venv-peers .pytest_cache .ruff_cache .hypothesis
