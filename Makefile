# Kubevox. `make` prints what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TASK ?= emotion
CONFIG ?= configs/$(TASK).yaml
CORPORA ?=
SET ?=
PORT ?= 8080
BUNDLE ?=
REHEARSE ?= all
# PyTorch's own index, where PyPI's default build is not wanted: for example its CPU or a CUDA one.
TORCH_INDEX ?=

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
OVERRIDES = $(foreach item,$(SET),--set '$(item)')

.PHONY: help setup run serve rollout mlflow test acceptance lint format compile clean

help:  ## show this help
	@echo "Kubevox: speech classification on Kubeflow"; echo
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo "  TASK=language              the other task (default: emotion)"
	@echo "  CORPORA=\"ravdess=DIR …\"    real recordings in place of the embedded corpus"
	@echo "  SET=\"train.epochs=5 …\"     override single values of the configuration"

setup: $(VENV)/.ready  ## make .venv with everything in it (other targets do this when needed)

# torch comes first: with it there, the ranges of later packages pull nothing in its place.
$(VENV)/.ready: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed; name another 3.11+ with PYTHON=…" >&2; exit 2; }
	@echo "setting up $(VENV) (once, a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	@$(PIP) --constraint constraints.txt --editable '.[pipeline,s3,synthetic,dev]'
	@touch $@

run: setup  ## run the pipeline: recordings to a gated, served model (exit 0 promoted, 3 rejected or taken back, 1 failed)
	@$(BIN)/python -m pipelines run --config $(CONFIG) $(if $(CORPORA),--corpora "$(CORPORA)") $(OVERRIDES)

serve: setup  ## serve the champion behind one port; rollouts take place in there
	@$(BIN)/kubevox serve --config $(CONFIG) --port $(PORT) $(OVERRIDES)

rollout: setup  ## watch rollouts: REHEARSE=all (default), good, crash, errors, slow, worse; or BUNDLE=URI in earnest
	@$(BIN)/kubevox rollout --config $(CONFIG) $(if $(BUNDLE),--bundle '$(BUNDLE)',--rehearse '$(REHEARSE)') $(OVERRIDES)

mlflow: setup  ## open MLflow's UI on the local experiments and registry
	@MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow ui --backend-store-uri sqlite:///.kubevox/mlflow.db --port 5000

test: setup lint  ## run the linters and the tests (under 10 minutes)
	@$(BIN)/python -m pytest -m "not acceptance" -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

acceptance: setup  ## run the full-size checks
	@$(BIN)/python -m pytest -m acceptance $(PYTEST_ARGS)

lint: setup  ## ruff, mypy and the import rules
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache > /dev/null || $(BIN)/lint-imports --no-cache

format: setup  ## format the code
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet .

compile: setup  ## compile the pipeline to training_pipeline.yaml
	@$(BIN)/python -m pipelines compile --config $(CONFIG)

clean:  ## remove .venv and the local store, experiments and runs
	rm -rf $(VENV) .kubevox
