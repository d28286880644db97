# `make help` lists what there is to do. Everything runs inside .venv, which is made on first use.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help env book pdf archive look test lint format bench accept clean

help:  ## list these verbs
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

env: $(VENV)/env.stamp  ## make or update the environment in .venv

book: env  ## run what changed, render the book, check it and its numbers: _build/html/index.html
	@echo "Building the book: papermill runs the chapters that changed, then the pages are rendered."
	jupyter-book build . -W -n --keep-going
	parameter-ordering check
	parameter-ordering compare

pdf: env  ## print the book that was built, with a browser: _build/book.pdf
	python -m parameter_ordering.paper.book.pdf

archive: env  ## pack the book that was built, with checksums: _build/book.zip
	python -m parameter_ordering.paper.book.archive

look: env  ## take a picture of every page, light, dark and on a phone: _build/look
	python -m parameter_ordering.paper.book.browser

test: env  ## run the tests, and the examples of the documentation
	@echo "Running the tests and the examples of the docstrings."
	pytest -n auto --dist worksteal

lint: env  ## check style, types and who imports whom, and that notebooks carry no outputs
	ruff check
	ruff format --check
	lint-imports
	mypy
	codespell
	git ls-files -z '*.ipynb' | xargs -0 -r nbstripout --keep-id --verify

format: env  ## bring sources and notebooks into that style
	ruff check --fix
	ruff format
	git ls-files -z '*.ipynb' | xargs -0 -r nbstripout --keep-id

bench: $(VENV)/bench.stamp  ## measure the speed, and write the record to benchmarks/
	python -m benchmarks

accept: env  ## take the numbers and verdicts of the last build as the reference values
	parameter-ordering accept

clean:  ## remove what the book has built, stored results too; .venv stays
	rm -rf _build

# A torch and torchvision that work are kept, whatever their version: they decide between CPU and GPU.
$(VENV)/env.stamp: pyproject.toml constraints.txt
	@echo "Installing the environment into $(VENV): some minutes, once."
	@test -n "$(PYTHON)" || { echo "Python 3.11 is needed, and not found"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if $(BIN)/python -c 'import torch, torchvision' 2>/dev/null; \
		then grep -vE '^torch(vision)?==' constraints.txt; else cat constraints.txt; fi > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet -c $(VENV)/constraints.txt -e '.[book,cluster,test,web]'
	@touch $@

$(VENV)/bench.stamp: $(VENV)/env.stamp
	@echo "Installing what the benchmarks compare with."
	$(BIN)/python -m pip install --quiet -c $(VENV)/constraints.txt -e '.[bench]'
	@touch $@
