# make demo    the whole chain on rendered scenes, into demo/ (installs into .venv first)
# make test    the whole test suite, slow tests apart
# make check   format, lint, types, tests: what a change must pass
# Another Python: make test PYTHON=python3.12

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# One process for each core; the tests of a file share one, because they share fixtures that take seconds.
PYTEST = $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile
WHAT_IS_INSTALLED = pyproject.toml constraints.txt

.PHONY: demo test check format clean

demo: $(VENV)/.installed-demo
	$(BIN)/titokctl demo

test: $(VENV)/.installed-dev
	$(PYTEST)

check: $(VENV)/.installed-dev
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy titokctl
	$(PYTEST)

format: $(VENV)/.installed-dev
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find titokctl tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: nothing is installed again until pyproject.toml or constraints.txt change.
$(VENV)/.installed-demo: $(BIN)/pip $(WHAT_IS_INSTALLED)
	$(INSTALL) -e '.[demo]'
	touch $@

# The dev extra contains the demo extra.
$(VENV)/.installed-dev: $(BIN)/pip $(WHAT_IS_INSTALLED)
	$(INSTALL) -e '.[dev]'
	touch $@ $(VENV)/.installed-demo

# pip is the last thing venv writes: an interrupted venv is made again.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("error: titokctl needs Python 3.11 or newer; $(PYTHON) is %d.%d\nhint: make PYTHON=python3.12 ..." % v[:2])'
	$(PYTHON) -m venv $(VENV)
