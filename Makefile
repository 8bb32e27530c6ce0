PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint types figures clean

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "splinterp needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[plot,dev,offline-llm]'
	@touch $@

demo: $(INSTALLED)  ## the sample-efficiency comparison on scikit-learn's digits
	$(BIN)/python -m experiments digits --out demo --jobs 2
	$(BIN)/python -m paper_figures sample_efficiency --results demo/digits.json --out demo

test: $(INSTALLED)  ## the test suite
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

figures: $(INSTALLED)  ## every figure, from the committed results
	$(BIN)/python -m paper_figures --all

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
