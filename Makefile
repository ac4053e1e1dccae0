# Every target sets up .venv by itself; all that must be there is make and python3 (3.10 to 3.13).
# The package index, mirrors and proxies are whatever pip and uv are configured to use on this machine.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
WORKERS ?= logical

.DEFAULT_GOAL := help
.PHONY: help demo demo-detection demo-segmentation test test-fast test-gpu lint format bench bench-kernels snapshots constraints clean

help:
	@echo "make demo           train and evaluate a small model on scikit-learn's digits (no download)"
	@echo "make demo-detection, make demo-segmentation"
	@echo "                    train a small Mask R-CNN or UperNet on digits drawn on photographs (no download)"
	@echo "make test           the whole test suite, without the tests that need a GPU or a network"
	@echo "make test-fast      three cases of every test that is not slow: minutes"
	@echo "make test-gpu       the tests that need a GPU"
	@echo "make lint           ruff (format and lint), pyright, layer contracts"
	@echo "make format         let ruff rewrite what it can"
	@echo "make bench          compare the scan orders, in less than ten minutes on two cores: runs/scan_benchmark_quick/report.html"
	@echo "make bench-kernels  time the scan kernels on this machine"
	@echo "make snapshots      rewrite the snapshots of the public names and of the state dicts"
	@echo "make constraints    resolve constraints.txt anew, keeping the pins that still fit"
	@echo "make clean          remove .venv and the caches"

# Environment: python3 -m venv, uv from pip, then uv for the rest. The stamps make a second run instant.

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v < (3, 14) else \
	    f"visionssm needs Python 3.10 to 3.13; $(PYTHON) is {v[0]}.{v[1]}. Choose another one: make PYTHON=python3.12 ...")'
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "'$(PYTHON) -m venv' failed: this Python comes without ensurepip. On Debian and Ubuntu: apt install python3-venv" >&2; \
	    exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv

INSTALL = $(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --editable

$(BIN)/.demo: $(BIN)/uv pyproject.toml constraints.txt
	$(INSTALL) '.[train]'
	@touch $@

# mmcv's operators are compiled against the torch that is installed, so after it: once, then from the user's cache.
$(BIN)/.dev: $(BIN)/uv pyproject.toml constraints.txt dev/build_mmcv.py
	$(INSTALL) '.[train,medical,export,dev]'
	$(BIN)/python dev/build_mmcv.py
	$(INSTALL) '.[train,openmmlab,medical,export,dev]'
	@touch $@ $(BIN)/.demo

# Jobs

demo: $(BIN)/.demo
	$(BIN)/python tools/train_classification.py configs/classification/digits_demo.yaml

demo-detection: $(BIN)/.dev
	$(BIN)/python tools/train_detection.py configs/detection/demo_mask_rcnn_vmamba_nano.py

demo-segmentation: $(BIN)/.dev
	$(BIN)/python tools/train_segmentation.py configs/segmentation/demo_upernet_vmamba_nano.py

# One thread per worker: the workers already fill the cores.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=$(WORKERS) --maxprocesses=8

test: $(BIN)/.dev
	@$(PYTEST) -m "not gpu and not network"

test-fast: $(BIN)/.dev
	@$(PYTEST) -m "not gpu and not network and not slow" --cases 3

test-gpu: $(BIN)/.dev
	@$(BIN)/python -m pytest -m gpu

lint: $(BIN)/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(BIN)/.dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(BIN)/.demo
	$(BIN)/python tools/benchmark_scans.py --quick

bench-kernels: $(BIN)/.demo
	$(BIN)/python -m visionssm_kernels.benchmark

snapshots: $(BIN)/.dev
	$(BIN)/python dev/update_snapshots.py

constraints: $(BIN)/.dev
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --all-extras --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links --output-file constraints.txt pyproject.toml

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist
