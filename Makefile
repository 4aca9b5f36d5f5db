# geonb: everything a checkout can do.
#
#   make run             install into .venv, train on the embedded digits, print the bundle and its accuracy
#   make test            everything that must hold: notebooks are the source, notebooks run, pytest, docs
#   make test-slow       the long versions of the tests
#   make lab             JupyterLab on nbs/
#   make docs            the site in _docs/ (Quarto when it is on PATH, else plain HTML), links checked
#   make readme          README.md from nbs/index.ipynb
#   make bench LAB=name  measure one laboratory against its peers and rewrite its results file
#   make assets          train the examples in geonb/assets/ anew (some minutes); ARGS=chromatic: only that one
#   make clean           remove what the other targets made, except .venv and papermill_runs/
#
#   PYTHON=python3.12    the interpreter .venv is made with (3.11 to 3.13)
#   TORCH=auto           auto, cpu, or a CUDA build by PyTorch's own name for it (cu126, cu128, ...)
#   JOBS=2               processes that run tests; 0: in this process (for a debugger)
#   ARGS=...             passed on: make run ARGS='-p epochs 2',  make test ARGS='-k bundle'

PYTHON ?= python3
TORCH  ?= auto
LAB    ?=
JOBS   ?= 2
ARGS   ?=

BIN   := .venv/bin
READY := .venv/.installed-$(TORCH)
DEV   := .venv/.installed-dev-$(TORCH)
FROM  := settings.ini setup.py pyproject.toml constraints-cpu.txt .ci/install.py

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help run test test-slow lab docs bench readme assets clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p;/^PYTHON/q' Makefile

run: $(READY)
	$(BIN)/geonb run train_pentachora $(ARGS)

test: $(DEV)
	$(BIN)/python .ci/check.py drift
	$(BIN)/python .ci/check.py notebooks
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)
	$(BIN)/python .ci/docs.py check

test-slow: $(DEV)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m slow $(ARGS)

lab: $(READY)
	$(BIN)/python -m jupyterlab --notebook-dir=nbs $(ARGS)

docs: $(READY)
	@if command -v quarto >/dev/null 2>&1; then touch README.md; PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_docs && $(BIN)/python .ci/docs.py films _docs; else $(BIN)/python .ci/docs.py build; fi

readme: $(READY)
	$(BIN)/python .ci/docs.py readme

bench: $(READY)
	@test -f "nbs/benchmarks/$(LAB).ipynb" || { echo "make bench: LAB='$(LAB)' names no notebook of nbs/benchmarks/; there is: $(or $(basename $(notdir $(wildcard nbs/benchmarks/*.ipynb))),none yet)" >&2; exit 2; }
	mkdir -p papermill_runs/benchmarks
	OMP_NUM_THREADS=1 $(BIN)/python -m papermill "nbs/benchmarks/$(LAB).ipynb" "papermill_runs/benchmarks/$(LAB).ipynb" --cwd nbs/benchmarks -p full true $(ARGS)

assets: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python .ci/assets.py $(ARGS)

clean:
	rm -rf _proc _docs build dist *.egg-info .pytest_cache .hypothesis nbs/nbdev.yml nbs/sidebar.yml
	find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
	find . -path ./.venv -prune -o -name .ipynb_checkpoints -type d -print0 | xargs -0 rm -rf

# The stamps: an install is repeated when a file it read has changed, or when TORCH names another build.
$(READY): $(FROM) | .venv/bin/python
	$(BIN)/python .ci/install.py --torch $(TORCH)
	@rm -f .venv/.installed-*; touch $@

$(DEV): $(FROM) | .venv/bin/python
	$(BIN)/python .ci/install.py --torch $(TORCH) --extra dev
	@rm -f .venv/.installed-*; touch $(READY) $@

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "make: no '$(PYTHON)' on PATH; geonb needs Python 3.11, 3.12 or 3.13 (name another with PYTHON=python3.12)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "make: '$(PYTHON)' is $$($(PYTHON) --version 2>&1); geonb needs Python 3.11, 3.12 or 3.13 (name another with PYTHON=python3.12)" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "make: '$(PYTHON) -m venv' failed; on Debian and Ubuntu the package python3-venv brings it" >&2; exit 1; }
