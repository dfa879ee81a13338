# Each target sets up what it needs, in .venv. `make help` lists them.
PYTHON ?= $(shell command -v python3 || command -v python3.11)
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

.PHONY: demo help install test test-long test-all lint style types torch ray lock clean

demo: $(VENV)/.runtime  ## draw tissue, train both phases, evaluate (three minutes)
	$(BIN)/python main.py --config=configs/demo.py --workdir=runs/demo

help:  ## this list
	@awk -F ':.*##' '/^[a-z-]+:.*##/ { printf "make %-10s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.runtime  ## set up .venv in the exact versions of requirements.lock

test: lint  ## the checks and tests before every commit (10 to 16 minutes on two cores with AVX-512)
	$(PYTEST) -m "not long"

test-long: $(VENV)/.test ray  ## only the long tests: kills at length, full width, processes, Ray
	KILLS=$${KILLS:-30} $(PYTEST) -m "long or kills"

test-all: test test-long  ## all tests

lint: style types  ## style, format and types

style: $(VENV)/.test  ## only ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test  ## only mypy: types
	$(BIN)/mypy

torch: $(VENV)/.test  ## install PyTorch, so that the comparisons with it run
	$(PIP) -r requirements-torch.txt

ray: $(VENV)/.test  ## install Ray, so that its test runs
	$(PIP) -r requirements-ray.txt

lock: $(VENV)/.runtime  ## bring requirements.lock up to date with pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --universal \
		--python-version 3.11 --no-annotate pyproject.toml --output-file requirements.lock

clean:  ## remove .venv and runs
	rm -rf $(VENV) runs

$(VENV)/.runtime: requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	touch $@

$(VENV)/.test: requirements-test.txt $(VENV)/.runtime
	$(PIP) -r requirements-test.txt
	touch $@
