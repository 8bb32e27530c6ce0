PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all test-other-machine interop golden lint types figures docs clean

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "splinterp needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[plot,dev,offline-llm]'
	@touch $@

demo: $(INSTALLED)  ## the sample-efficiency comparison on scikit-learn's digits
	$(BIN)/python -m experiments digits --out demo --jobs 2
	$(BIN)/python -m paper_figures sample_efficiency --results demo/digits.json --out demo

# Budgets on two quiet cores, without installation: 3 minutes for `make test`, 10 minutes for `make test-all`. A test that
# does not fit the first is marked slow: those that kill or pair processes, or train until features are found.
# One file stays on one worker, so that its fixtures are made once.
WORKERS := -n 2 --dist loadfile

test: $(INSTALLED)  ## the test suite without its slow tests
	$(BIN)/python -m pytest $(WORKERS)

test-all: $(INSTALLED)  ## the whole test suite
	$(BIN)/python -m pytest $(WORKERS) -m "slow or not slow"

# Libraries choose their kernels by the CPU, and each rounds sums in its own order. The numerical tests run once more as on
# an old CPU (SSE4.2 only), so that none passes by the bits of the machine it was written on.
NUMERICAL := tests/properties tests/geometry tests/decoder tests/sparse_kernels/test_products.py tests/training/test_pam.py

test-other-machine: $(INSTALLED)  ## the numerical tests with the instructions of an old CPU
	ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=Nehalem \
		$(BIN)/python -m pytest $(WORKERS) $(NUMERICAL)

# Real SAELens, dictionary_learning, sparsify, Overcomplete, SAEBench and sae-dashboard, in an environment of their own. The first three
# ask for torchvision, which has no build for a CPU's torch and whose other builds keep transformers from being imported: it is taken out
# again. The others ask for older versions of what those need, or for libraries of images, and work without: they come without what they
# ask for but for a few small packages.
INTEROP := .interop
PEERS := sae-lens==6.54.12 dictionary-learning==0.1.0 eai-sparsify==1.3.3
TOOLS := overcomplete==0.3.0 sae-bench==0.6.0 sae-dashboard==0.8.0 collectibles==0.1.5 dataclasses-json==0.6.7 decode-clt==0.0.1 eindex-callum==0.1.2
FOR_TOOLS := tabulate matplotlib "marshmallow<4" typing-inspect hf-transfer

$(INTEROP)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 $(PEERS) pytest hypothesis
	$(INTEROP)/bin/pip install --quiet --disable-pip-version-check $(FOR_TOOLS)
	$(INTEROP)/bin/pip install --quiet --disable-pip-version-check --no-deps $(TOOLS)
	$(INTEROP)/bin/pip uninstall --quiet --yes torchvision
	$(INTEROP)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

interop: $(INTEROP)/.installed  ## what other libraries and tools make of what is exported, and the other way round
	$(INTEROP)/bin/python -m pytest -W ignore tests/interop

golden: $(INTEROP)/.installed  ## small files of those libraries, by which reading is tested without them
	$(INTEROP)/bin/python -m tests.interop.make_golden

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

figures: $(INSTALLED)  ## every figure, from the committed results
	$(BIN)/python -m paper_figures --all

docs: $(INSTALLED)  ## the documentation into site/, without a network; warnings are errors
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) $(INTEROP) demo results site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
