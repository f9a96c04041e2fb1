# Each target makes .venv when it is missing or out of date; nothing else has to be typed first.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# OpenMP threads that wait sleep instead of spinning: the cores are shared.
export OMP_WAIT_POLICY = passive

.DELETE_ON_ERROR:
.PHONY: demo test test-all check embedded

demo: $(INSTALLED)  ## the embedded model on unseen clips, beside the baselines: demo_out/
	$(BIN)/genprop demo --out demo_out

test: $(INSTALLED)  ## the fast tests, with the coverage floor
	$(BIN)/pytest -m "not slow" --cov=genprop

test-all: $(INSTALLED)  ## every test, the slow ones too
	$(BIN)/pytest --cov=genprop

check: $(INSTALLED)  ## lint, format, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

embedded: $(INSTALLED)  ## trains the embedded model again (hours)
	sh scripts/embedded.sh

# torch goes first and alone: asked for together with others, pip may prefer a build for CUDA over a local
# wheel for the CPU. Its version is in constraints.txt, as everything's.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@
