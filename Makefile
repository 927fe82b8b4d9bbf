# Every target sets up what it needs: .venv in this checkout, from requirements.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help venv demo test browser lint types clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: $(STAMP)  ## make the environment: .venv/bin/python

# A fresh Debian or Ubuntu has python3 without ensurepip; its package python3-venv adds that.
$(STAMP): pyproject.toml requirements.txt requirements-dev.txt requirements-nodeps.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or later is needed; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "installing python3-venv"; SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	    $$SUDO apt-get update -q && $$SUDO apt-get install -qy python3-venv; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e . -r requirements-dev.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -r requirements-nodeps.txt
	@touch $@

demo: $(STAMP)  ## unlearn on the embedded benchmark; shows a table, figures and a report (about five minutes)
	$(BIN)/python src/exec/demo.py

test: $(STAMP) browser  ## run the tests
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist worksteal

# The report's page is tested in Chromium where it can be had; elsewhere those tests are skipped.
browser:
	@if command -v chromium && command -v chromedriver; then :; elif command -v apt-get; then \
	  SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo -n); \
	  $$SUDO apt-get update -q && $$SUDO apt-get install -qy --no-install-recommends chromium chromium-driver; \
	fi >/dev/null 2>&1 || echo "Chromium cannot be installed here: its tests are skipped"

lint: $(STAMP) types  ## check style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# mypy finds a package by its folder's name, and the package wagle lies in src.
types: $(STAMP)  ## check types
	@mkdir -p $(VENV)/types && ln -sfn ../../src $(VENV)/types/wagle
	$(BIN)/mypy

clean:  ## remove the environment
	rm -rf $(VENV)
