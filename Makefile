# SPDX-License-Identifier: Apache-2.0
# The same commands for laptop, CI and cluster. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/installed
WORKERS ?= 2
CODE := bt_megatron data_prep slurm tools

.PHONY: help venv demo test check format lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## make .venv with Python 3.12 and everything in requirements.lock

$(STAMP): requirements.lock pyproject.toml tools/make_venv.sh
	@bash tools/make_venv.sh $(VENV)
	@touch $@

demo: $(STAMP) ## the whole road in minutes: text, tokens, training, export, generated text
	@$(PYTHON) -m tools.demo

test: $(STAMP) ## run all tests that need no GPU
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
		$(PYTHON) -m pytest -n $(WORKERS) --dist loadfile -m "not gpu"

check: $(STAMP) ## lint, formatting, types and spelling
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy $(CODE)
	@$(VENV)/bin/codespell

format: $(STAMP) ## write the formatting that `make check` asks for
	@$(PYTHON) -m ruff check --fix-only --quiet .
	@$(PYTHON) -m ruff format .

lock: $(STAMP) ## resolve pyproject.toml again and write requirements.lock
	@$(PYTHON) -m pip install --quiet uv
	@$(PYTHON) -m uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate \
		--no-header --python-version 3.12 --python-platform x86_64-manylinux_2_28 \
		--extra dev pyproject.toml --output-file requirements.lock

clean: ## remove caches; keeps .venv, data and runs
	@rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist ./*.egg-info
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
