# Everything a newcomer needs: `make demo`, `make test`, `make bench`, `make lint`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready

# An installed program has its bytecode: it is what is tested and measured.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help venv demo test test-all test-libraries test-go go unit lint format bench interpreters browser layouts docs screenshots clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

venv: $(STAMP) ## Prepare the environment in .venv/

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

interpreters: venv ## Fetch the interpreters that the tests use and the machine lacks
	$(BIN)/python tools/fetch_interpreters.py

go: venv ## Fetch the Go toolchain that the tests use (else they are skipped); test-go fetches all
	$(BIN)/python tools/fetch_go.py 1.27

browser: venv ## Have Chromium and axe-core, for the tests of the HTML report (else they are skipped)
	$(BIN)/python tools/fetch_browser.py

demo: venv ## Start a leaking service, report on it live, then from its core
	$(BIN)/python tools/demo.py

test: interpreters go ## Run every test on every interpreter found
	$(BIN)/python -m pytest -n 3 --dist worksteal --reruns 2 --reruns-delay 1 -r fER

test-all: interpreters ## The same with every leak on every version, all with native frames
	DIAGTOOL_TEST_FRAMES=all DIAGTOOL_TEST_WORLDS=2000 DIAGTOOL_TEST_SEEDS=4 $(BIN)/python -m pytest -n 3 --dist worksteal -r fER

test-libraries: interpreters ## The same with real libraries on every interpreter: fetches gigabytes
	DIAGTOOL_TEST_LIBRARIES=all $(BIN)/python -m pytest

test-go: interpreters ## The tests of Go with every version of it, 1.19 to 1.27: fetches half a gigabyte
	$(BIN)/python tools/fetch_go.py
	DIAGTOOL_TEST_GO=all $(BIN)/python -m pytest -r fER $$(grep -rlE 'go_programs|data/go' tests --include='test_*.py')

unit: venv ## Run the fast tests only
	$(BIN)/python -m pytest tests/unit

lint: venv ## Format check, lint, types, import arrows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/make_runbooks.py --check

format: venv ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: venv ## Measure against pinned peers, side by side
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python bench/run.py --write docs/benchmarks.md

accuracy: interpreters go ## Measure what is found, and what is said of healthy programs
	$(BIN)/python tools/accuracy.py --write docs/accuracy.md
	$(BIN)/python tools/go_accuracy.py --write docs/accuracy-go.md

docs: venv ## Fill in what programs say in docs/
	$(BIN)/python tools/make_docs.py --samples

screenshots: venv browser ## Make the pictures of docs/html-report.md
	$(BIN)/python tools/make_screenshots.py

layouts: venv ## Regenerate the structure layout tables from interpreter headers
	$(BIN)/python tools/layouts/generate.py
	$(BIN)/python tools/layouts/opcodes.py

clean: ## Remove the environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build dist src/*.egg-info
