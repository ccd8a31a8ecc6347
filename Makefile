# make demo   the study on an embedded default: sets up, fetches the demo model, trains, reports
# make test   sets up, then lint, types and all tests
# make lint   ruff and mypy
# make bench  the benchmarks of one adapted layer, of the Cayley transform and of accelerate, with ratios to their peers
# make bench-check   fails if anything is slower, beyond the noise, than at the commit AGAINST: by default HEAD where files
#             have been changed since, HEAD~1 where not; e.g. make bench-check AGAINST=origin/main. The commit is built once
# make gpu    the GPU session: build, tests, benchmarks, with what is installed and no network
#
# Everything happens in $(VENV). torch comes first: the other packages accept the torch they find, so a machine without
# a GPU never downloads a CUDA build. TORCH names another one, e.g. make test TORCH=torch==2.11.0

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH_VERSION := 2.13.0
ifeq ($(shell command -v nvidia-smi),)
TORCH ?= torch==$(TORCH_VERSION)+cpu
TORCH_INDEX := --extra-index-url https://download.pytorch.org/whl/cpu
else
TORCH ?= torch==$(TORCH_VERSION)
TORCH_INDEX :=
endif
WORKERS ?= auto

.PHONY: demo test lint bench bench-check gpu setup clean

# The extension is part of the set-up, so it is rebuilt when its sources change.
SOURCES := pyproject.toml setup.py $(wildcard csrc/*)

setup: $(VENV)/.ready

$(VENV)/.torch:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" || $(BIN)/pip install --quiet $(TORCH_INDEX) "$(TORCH)"
	$(BIN)/pip install --quiet "setuptools>=77" wheel ninja pybind11
	touch $@

$(VENV)/.ready: $(VENV)/.torch $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/hybrid-kernels run demo

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/linear_layer.py
	$(BIN)/python benchmarks/cayley.py
	$(BIN)/python benchmarks/acceleration.py step
	$(BIN)/python benchmarks/acceleration.py layers
	$(BIN)/python benchmarks/acceleration.py memory

# Recursive, so that git is asked only where this is made.
AGAINST ?= $(shell git diff --quiet HEAD && echo HEAD~1 || echo HEAD)

# The backends by name are left out: what they lose shows where they are chosen.
bench-check: setup
	$(BIN)/hybrid-kernels bench --quick --against $(AGAINST) --check --without ours,hybrid,accelerated --pass forward,both \
	  --output build/bench-check.jsonl

gpu:
	PYTHON="$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))" benchmarks/gpu_session.sh

clean:
	rm -rf $(VENV) build *.egg-info hybrid_kernels/_C.* hybrid_kernels/_build_info.json
