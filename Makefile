# make demo   the study on an embedded default: sets up, fetches the demo model, trains, reports
# make test   sets up, then lint, types and all tests
# make lint   ruff and mypy
# make bench  measures operators, layers and a small model beside their peers: ratios, peak memory; RESULT names the file
# make charts the README's charts, from the committed result of the benchmarks
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

.PHONY: demo test lint bench bench-check charts gpu setup clean

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

RESULT ?= build/bench.jsonl

bench: setup
	$(BIN)/hybrid-kernels bench --output $(RESULT)
	$(BIN)/hybrid-kernels bench --kind layers --output $(RESULT)
	$(BIN)/hybrid-kernels bench --op cayley_packed --output $(RESULT)
	$(BIN)/hybrid-kernels bench --case features --output $(RESULT)
	$(BIN)/hybrid-kernels bench --kind layers --sweep tokens --output $(RESULT)


charts: setup
	$(BIN)/hybrid-kernels bench plot benchmarks/results/bench.cpu.float32.jsonl --out benchmarks/results/charts --only \
		layer-linear.cpu.float32.time,layer-accelerate.cpu.float32.time,layer-features.cpu.float32.time,layer-linear-by-tokens.cpu.float32.time-against-tokens

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
