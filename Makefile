# The two commands that matter: `make repro` and `make test`. Both build .venv first when it is missing.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HOST := 127.0.0.1
PORT ?= 5000
SAMPLE ?= 20

# No telemetry, no analytics; everything here works offline once .venv exists.
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
# Threads that wait by spinning starve each other when tests run side by side.
export OMP_WAIT_POLICY := PASSIVE
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help repro repro-quick repro-seeds repro-literature repro-cifar10 repro-imagenet-sample repro-imagenet pipelines test coverage mutants docs package lint format bench bench-gpu screenshot ui

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9 -]+:.*## / {printf "  make %-22s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[experiments,export,examples,imagenet,slurm,docs,dev]'
	touch $@

repro: $(STAMP) ## rerun the paper's experiments, from raw data to reports/README.md
	dvc repro

QUICK = import yaml; print(*("evaluate@" + run for run in yaml.safe_load(open("conf/matrix.yaml"))["quick"]))

repro-quick: $(STAMP) ## the same for LeNet-300-100 with one seed: the runs of conf/matrix.yaml's list `quick`
	dvc repro $$(python -c '$(QUICK)')
	lobs report

repro-seeds: $(STAMP) ## two more seeds of what `repro` runs once, and the staged method
	cd pipelines/seeds && dvc repro
	lobs report

repro-literature: $(STAMP) ## MLPNet, on which papers on pruning at once compare themselves, and a small ViT
	cd pipelines/literature && dvc repro
	lobs report

# The data's place is handed on in the environment: it must not reach a tracked file.
# An empty one would be a place, too: without DATA what can be downloaded is.
ifdef DATA
repro-cifar10 repro-imagenet-sample repro-imagenet: export LOBS_DATA = $(abspath $(DATA))
endif

repro-cifar10: $(STAMP) ## CIFAR-Net and ResNet-20: DATA=<archive or folder>
	cd pipelines/cifar10 && dvc repro
	lobs report

repro-imagenet-sample: $(STAMP) ## EfficientNet-Lite0 on some pictures: DATA=<archive or folder>
	cd pipelines/imagenet && dvc repro
	lobs report

# RUNS="alexnet/seed0/lobs ..." runs these alone, WITH="devices=4 ..." sets values of conf/, LAUNCHER="slurm
# hydra.launcher.partition=gpu ..." makes every stage a job (conf/launcher). What they say is no file that DVC watches, so
# `resolve` always runs; stages that are finished, and the finished part of one that was stopped, are kept.
repro-imagenet: export LOBS_OVERRIDES = $(WITH)
repro-imagenet: export LOBS_LAUNCHER = $(LAUNCHER)
repro-imagenet: $(STAMP) ## AlexNet, VGG-16, ResNet-50: DATA=<ImageNet folder>, first an estimate of time and disk
	cd pipelines/imagenet_paper && dvc repro --force --single-item resolve && dvc repro --single-item fetch \
	    && lobs estimate $(RUNS) && dvc repro $(RUNS:%=evaluate@%)
	lobs report

pipelines: $(STAMP) ## write pipelines/*/dvc.yaml anew from dvc.yaml
	python pipelines/write.py

test: lint ## lint, types, then the test suite
	pytest -n 2 --dist loadfile --durations=25

coverage: $(STAMP) ## the test suite, and which lines it runs: 95% of the library's at least
	pytest -n 2 --dist loadfile --cov=src --cov-report=term
	coverage report --include='src/lobs/*' --skip-covered --fail-under=95

mutants: $(STAMP) ## test the tests: SAMPLE mutants of every room, each against the room's tests: reports/mutants.md
	python tests/mutants.py --sample $(SAMPLE)

docs: $(STAMP) ## build the site into site/, warnings are errors; open site/index.html
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

package: $(STAMP) ## build the sdist and the wheel, and try the wheel out in an empty folder
	python tests/packaging/check_wheel.py

lint: $(STAMP) ## ruff (rules, format), mypy and the import rule
	ruff check
	ruff format --check
	mypy
	lint-imports

format: $(STAMP) ## rewrite the sources in the house format
	ruff check --fix
	ruff format

bench: $(STAMP) ## measure what takes time, and compare with the committed ratios: reports/speed.md
	env -u OMP_WAIT_POLICY python benchmarks/speed.py

bench-gpu: $(STAMP) ## the same on a CUDA device: reports/gpu.md
	@python benchmarks/gpu.py

screenshot: $(STAMP) ## take docs/mlflow.png anew, of the runs as they are (needs a Chromium)
	lobs track
	python docs/screenshot.py

ui: $(STAMP) ## rebuild MLflow's store from the metrics files and open its UI on 127.0.0.1
	lobs track
	@echo 'open http://$(HOST):$(PORT)/#/experiments/1/runs?workflowType=machine_learning'
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --workers 1 \
	    --backend-store-uri sqlite:///$(CURDIR)/mlruns/mlflow.db --host $(HOST) --port $(PORT)
