# make demo   the environment, an example dataset, its synthetic PET
# make test   the environment, the tests but for the slow ones (make test-slow)
# make test-cluster   the scripts of docs/hpc on a real Slurm that the tests start (root; apt-get install slurm-wlm munge)
# make docs   the documentation site, in site/
#
# PYTHON       interpreter for the environment (3.11 to 3.13)
# TORCH_INDEX  package index for torch alone, where the default one brings CUDA and a CPU build is wanted:
#              make demo TORCH_INDEX=https://…/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
VENV ?= .venv
DEMO ?= demo
CONTAINER ?= run
BIN := $(VENV)/bin
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: env demo test test-slow test-cluster test-container lint docs clean

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: env
	$(BIN)/bids-petsynth-example $(DEMO)/bids
	$(BIN)/bids-petsynth $(DEMO)/bids $(DEMO)/out participant --tracer AV45 FDG AV1451
	@echo "Results: $(DEMO)/out (start with sub-*.html, status.tsv and README)"

test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist loadfile --no-loadscope-reorder

test-slow: env
	$(BIN)/python -m pytest -m slow

test-cluster: env
	$(BIN)/python -m pytest -m cluster tests/cluster

# As root: builds the containers for a quarter of an hour (tests/container/README.md).
test-container: env
	PETSYNTH_TEST_CONTAINER=$(CONTAINER) TORCH_INDEX=$(TORCH_INDEX) $(BIN)/python -m pytest tests/container

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: env
	$(BIN)/sphinx-build -W --keep-going -b dirhtml docs site

clean:
	rm -rf $(VENV) $(DEMO) build dist site *.egg-info
