# make quickstart, make test: each makes the virtual environment if there is none, installs, runs.
# Variables: PYTHON (makes the environment), VENV (where it is), ARGS (passed on to the command),
# such as: make quickstart ARGS="--set seed=1"

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

bin := $(VENV)/bin
# A stamp per set of dependencies: installing again is only needed when pyproject.toml has changed.
installed := $(VENV)/.installed
installed_test := $(VENV)/.installed-test
installed_docs := $(VENV)/.installed-docs
pip_install := $(bin)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint docs

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(installed) ## train and evaluate the small system; ends with the path of its report
	@$(bin)/rmas run --config quickstart $(ARGS)

test: $(installed_test) ## run the tests
	@$(bin)/python -m pytest $(ARGS)

lint: $(installed_test) ## check style, formatting, the direction of imports, types and shell scripts
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .
	@$(bin)/lint-imports
	@$(bin)/mypy
	@$(bin)/shellcheck tpu/*.sh

docs: $(installed_docs) ## build the documentation site into site/, strictly and without network
	@NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build

$(bin)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "rmas_jax needs Python 3.11 or newer; this is " + sys.version.split()[0] + " (set PYTHON=...)")'
	@echo "making the virtual environment $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(installed): pyproject.toml | $(bin)/pip
	@echo "installing rmas_jax into $(VENV) (a few minutes the first time) ..."
	@$(pip_install) -e .
	@touch $@

$(installed_test): pyproject.toml | $(bin)/pip
	@echo "installing rmas_jax and its test tools into $(VENV) (a few minutes the first time) ..."
	@$(pip_install) -e '.[test]'
	@touch $(installed) $@

$(installed_docs): pyproject.toml | $(bin)/pip
	@echo "installing rmas_jax and what builds its documentation into $(VENV) ..."
	@$(pip_install) -e '.[docs]'
	@touch $(installed) $@
