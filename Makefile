# Phony targets only: the stages and what they depend on live in pipeline/flow.py.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

BOARD  ?= pynq-z2
PLACE  ?= simulated
RECIPE ?= runs/digits.toml
STUDY  ?= digits_seeds
ARGS   ?=

# The first of these that runs and is of a supported version; python3 as it is for the message otherwise.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON = $(shell for p in python3.11 python3.12 python3; do \
	if $$p -c '$(SUPPORTED)' 2>/dev/null; then echo $$p; exit; fi; done; echo python3)
RUN := .venv/bin/python -m pipeline

.PHONY: help venv benchmark bitstream test lint bench study clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "Variables: BOARD=$(BOARD) PLACE=$(PLACE) RECIPE=$(RECIPE) STUDY=$(STUDY) ARGS= (more options) PYTHON= (3.11 or 3.12)"

venv:  ## make or repair .venv with the pinned packages (the other targets do this themselves)
	@command -v $(PYTHON) >/dev/null || { echo "slimgate: Python 3.11 or 3.12 is needed and none was found" >&2; exit 2; }
	@$(PYTHON) pipeline/environment.py

benchmark: venv  ## from images to a benchmarked board: RECIPE on BOARD at PLACE
	@$(RUN) run $(RECIPE) --board $(BOARD) --place $(PLACE) $(ARGS)

bitstream: venv  ## the same up to the verified HLS project, then the vendor tools
	@$(RUN) run $(RECIPE) --board $(BOARD) --until bitstream $(ARGS)

test: venv  ## the whole test suite
	@.venv/bin/python -m pytest $(ARGS)

lint: venv  ## style, and that imports point one way: pipeline -> hls -> boards
	@.venv/bin/ruff check .
	@.venv/bin/lint-imports --no-cache

bench: venv  ## our C simulation, reference, planner and trimming against others', as ratios
	@.venv/bin/python -m pipeline.bench $(ARGS)
	@.venv/bin/python -m pipeline.bench_trimming

study: venv  ## a longer investigation, STUDY of pipeline/studies: does a claim hold over seeds?
	@.venv/bin/python -m pipeline.studies.$(STUDY) $(ARGS)

clean:  ## remove build/ and caches (not .venv)
	rm -rf build .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
