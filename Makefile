# Two commands, each enough by itself after a fresh clone:
#   make quickstart   compress the model that comes with the repository, measure it, judge it (runs/quickstart)
#   make test         lint, types and tests
# Both make .venv first if there is none, and install again only after pyproject.toml or constraints.txt changed.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$python && break; done)

.PHONY: quickstart test lint types format clean
.DELETE_ON_ERROR:

quickstart: $(STAMP)
	$(BIN)/demitasse run quickstart

test: lint types
	$(BIN)/python -m pytest -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy --strict --no-error-summary

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

# The stamp is written last, so an installation that was cut short is taken up again; a half-made environment is made anew.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { \
		echo "demitasse needs Python 3.11 or newer, and found none; install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		echo "making $(VENV) with $(PYTHON)"; \
		$(PYTHON) -m venv --clear $(VENV); } || { \
		echo "$(PYTHON) could not make a virtual environment (on Debian and Ubuntu: apt-get install python3-venv)" >&2; \
		exit 1; }
	@echo "installing demitasse into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	@touch $(STAMP)
