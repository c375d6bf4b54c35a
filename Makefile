# `make demo` and `make test` do everything on a fresh machine: environment, installation, work.
VENV ?= .venv
PIP := $(VENV)/bin/pip --disable-pip-version-check install --quiet --constraint constraints.txt

# One thread a process that waits passively: processes that share few cores do not spin against each other.
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

# Compiled tests are kept: every worker of every run would compile them again.
unexport PYTHONDONTWRITEBYTECODE

PYTEST := $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

.PHONY: demo test test-slow test-all quality style docs clean

demo: $(VENV)/installed
	$(VENV)/bin/hf-unlearn demo

test: $(VENV)/installed-dev
	$(PYTEST)

# What starts several processes, is killed on purpose, or trains until there is something to see.
test-slow: $(VENV)/installed-dev
	$(PYTEST) -m slow

test-all: test test-slow

quality: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-cache

style: $(VENV)/installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# The site in build/docs; a link without a target and a docstring that cannot be read are errors.
docs: $(VENV)/installed-docs
	$(VENV)/bin/mkdocs build --strict

$(VENV)/installed: setup.py constraints.txt
	python3 -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable ".[dev]"
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
