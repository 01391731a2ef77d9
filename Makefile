# `make` alone lists the targets. They use .venv, made at the first call; to use the Python you
# already have (Colab, conda), name it: make demo PYTHON=python3
VENV_PYTHON := .venv/bin/python
PYTHON ?= $(VENV_PYTHON)
READY := $(if $(filter $(VENV_PYTHON),$(PYTHON)),.venv/.ready)

.PHONY: help install demo test test-slow test-lowest check format docs wheel bench
help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

.venv/.ready: pyproject.toml
	python3 -m venv .venv
	$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

install: $(READY) ## install fedta and its development tools into .venv

demo: $(READY) ## 100 clients on non-iid digits, on Flower's engine and in one process (under two minutes)
	$(PYTHON) -m experiments run demo

# No more workers than that: a large host may give a container few of its cores.
test: $(READY) ## the tests (about ten minutes on two cores)
	$(PYTHON) -m pytest -q -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: $(READY) ## all tests, those on Flower's simulation engine and real CIFAR-100 included
	$(PYTHON) -m pytest -q

test-lowest: $(READY) ## the core tests with the lowest versions that pyproject.toml admits
	PYTHON=$(PYTHON) .ci/lowest

check: $(READY) ## formatting, lint and types; changes nothing
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

format: $(READY) ## write the formatting that `make check` wants
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

docs: $(READY) ## the documentation as HTML in build/docs; a warning is an error
	$(PYTHON) -m docs.keys
	$(PYTHON) -m sphinx -a -W --keep-going -q -c docs . build/docs

wheel: $(READY) ## build dist/*.whl, and use it in a clean environment without this checkout
	PYTHON=$(PYTHON) .ci/wheel

bench: $(READY) ## speed and memory beside a bare PyTorch loop and other frameworks (more than an hour)
	$(PYTHON) -m benchmarks
