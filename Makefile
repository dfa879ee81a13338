# `make demo` and `make test` set everything up by themselves, in .venv.
PYTHON ?= $(shell command -v python3 || command -v python3.11)
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-long torch lint clean

demo: $(VENV)/.runtime
	$(BIN)/python main.py --config=configs/demo.py --workdir=runs/demo

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not long"

# Jobs that are killed again and again; KILLS and OTHER_SIGNALS say how often.
test-long: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m long

# The tests that compare with PyTorch run where it is installed.
torch: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-torch.txt

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/.runtime: requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	touch $@

$(VENV)/.test: requirements-test.txt $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

clean:
	rm -rf $(VENV) runs
