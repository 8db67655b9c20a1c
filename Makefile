# make quickstart | test | test-all | lint | docs | clean        (make alone tells what each does)
#
# Everything lives in .venv, made with python3 -m venv and filled by pip. The stamp files in it say what is installed,
# so that a second call starts at once; a change of pyproject.toml installs anew.

PYTHON ?= python3
VENV := .venv
LOWEST := $(VENV)/lowest
BIN := $(VENV)/bin
SHELL := bash

# The main job on 1,295 bundled images of 8x8 pixels: a search, then small networks trained and compared. A mirrored
# digit is another one, so none is mirrored.
QUICKSTART := run --data digits --budget 3M --epochs 40 --supernet-epochs 12 --hflip 0 --output runs/quickstart --overwrite

# Two processes, as the times below are told for; more take less time and a gigabyte of memory each.
JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)
BEGUN := $(shell date +%s)

.PHONY: help quickstart test test-all test-lowest lint docs clean

help:
	@echo "make quickstart   search, train and compare networks on bundled images (minutes, no download of data)"
	@echo "make test         the tests that are not slow (under 6 minutes on two cores)"
	@echo "make test-all     those, then the slow ones (under 20 minutes on two cores)"
	@echo "make test-lowest  all tests, with the oldest versions that pyproject.toml allows"
	@echo "make lint         ruff and mypy"
	@echo "make docs         write the generated parts of README.md and docs/ anew, and build the site into site/"
	@echo "make clean        remove caches and builds; $(VENV) and runs stay"

quickstart: $(VENV)/.installed
	@echo "psvit $(QUICKSTART)"
	@echo "  asks whether a search can pay, and searches, or takes the default network, of 3 M MACs for the bundled digits"
	@echo "  (8x8 pixels); trains it, its plain twin, a ResNet-18 and a random one, and evaluates each once on the test"
	@echo "  split: about 5 minutes on two cores; results go to runs/quickstart"
	@$(BIN)/psvit $(QUICKSTART)

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"

test-all: test
	$(PYTEST) -m slow
	@echo "make test-all took $$(($$(date +%s) - $(BEGUN))) seconds"

# In a venv of its own, filled from pyproject.toml with == for >=
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	grep -oE '"[A-Za-z0-9-]+(\[[a-z]+\])?>=[0-9.]+"' pyproject.toml \
		| sed -E 's/"|\[[a-z]+\]//g; s/>=/==/' | sort -u > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install -q -c $(LOWEST)/constraints.txt -e '.[data,dense,docs,export,postgres,dev]'
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n $(JOBS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy psvit benchmarks docs/build.py docs/hooks.py

docs: $(VENV)/.installed-docs
	$(BIN)/python docs/build.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "the site is site/index.html; for its search serve it: $(BIN)/mkdocs serve"

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find psvit tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# pip tells what it downloads and installs; what is there already is not worth a line. Its errors stay whole.
define install
@echo "installing psvit$(2) into $(VENV) (the first time torch is downloaded, which is large)"
@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check -e '.$(2)' \
	| { grep --line-buffered -oE '^ *(Downloading .*|Installing collected packages|Successfully [a-z]+)' || true; }
@touch $(1)
endef

# a venv with the dev tools holds the package too
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(if $(shell test $(VENV)/.installed-dev -nt pyproject.toml && echo there),@touch $@,$(call install,$@,))

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(call install,$@,[dev])

$(VENV)/.installed-docs: pyproject.toml | $(BIN)/python
	$(call install,$@,[docs])
