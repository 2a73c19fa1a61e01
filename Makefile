# Two commands, each enough by itself after a fresh clone:
#   make quickstart   compress the model that comes with the repository, measure it, judge it (runs/quickstart)
#   make test         lint, types and tests; `make test-all` adds the thorough ones, which a release runs
# Both make .venv first if there is none, and install again only after pyproject.toml or constraints.txt changed: quickstart
# what compressing needs, the others what tests need too.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
DEV_STAMP := $(VENV)/installed-dev
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$python && break; done)

PYTEST = $(BIN)/python -m pytest -q
# A worker a core and a thread each; then, with the cores to themselves, the tests whose processes share them.
ABREAST := -n auto --dist worksteal
QUICK := and not thorough

.PHONY: quickstart test test-all campaign abreast lint types docs format clean
.DELETE_ON_ERROR:

quickstart: $(STAMP)
	$(BIN)/demitasse run quickstart

test: lint
	@$(MAKE) --no-print-directory -j2 types abreast
	$(PYTEST) -m "alone $(QUICK)"

test-all:
	@$(MAKE) --no-print-directory test QUICK=

# Thousands of attempts to break it, for hours: before a release. One kind: make campaign ONLY=flips COUNT=200 SEED=7
campaign: $(DEV_STAMP)
	$(BIN)/python tests/campaign $(if $(ONLY),--only $(ONLY)) $(if $(COUNT),--count $(COUNT)) $(if $(SEED),--seed $(SEED)) \
		$(if $(FIRST),--first $(FIRST)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(REPLAY),--replay $(REPLAY))

# Beside the types, which take one core for a minute where nothing is cached.
abreast: $(DEV_STAMP)
	$(PYTEST) $(ABREAST) -m "not alone $(QUICK)"

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV_STAMP)
	$(BIN)/mypy --strict --no-error-summary

# Pages that are made of the code itself.
docs: $(DEV_STAMP)
	$(BIN)/python -c 'from recipes.cli.methods import as_markdown; print(as_markdown(), end="")' > docs/methods.md
	$(BIN)/python docs/make_api.py > docs/api.md

format: $(DEV_STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

# $(call install,WHAT,IN WORDS): WHAT and what it needs, into an environment that is made if there is none. The stamps are written last,
# so an installation that was cut short is taken up again; a half-made environment is made anew.
define install
	@test -n "$(PYTHON)" || { \
		echo "demitasse needs Python 3.11 or newer, and found none; install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		echo "making $(VENV) with $(PYTHON)"; \
		$(PYTHON) -m venv --clear $(VENV); } || { \
		echo "$(PYTHON) could not make a virtual environment (on Debian and Ubuntu: apt-get install python3-venv)" >&2; \
		exit 1; }
	@echo "installing $(2) into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '$(1)' --constraint constraints.txt
endef

$(STAMP): pyproject.toml constraints.txt
	$(call install,.,demitasse)
	@touch $(STAMP)

$(DEV_STAMP): pyproject.toml constraints.txt
	$(call install,.[dev],demitasse and what its tests need)
	@touch $(STAMP) $(DEV_STAMP)
