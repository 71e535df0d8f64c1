# make train ARGS="--max-steps 100"    make test    make lint    make soak    make clean
# `make test PY=python3` uses that Python and what is installed for it; without PY a virtual environment is made.

PY :=
ARGS :=

ifeq ($(PY),)
PYTHON := .venv/bin/python
TRAIN_STAMP := .venv/.train-installed
TEST_STAMP := .venv/.test-installed
else
PYTHON := $(PY)
endif

# A process for each core, four at most, where pytest-xdist is installed. A file's tests share fixtures and so a process.
WORKERS = $(shell $(PYTHON) -c 'import xdist' 2>/dev/null && echo --numprocesses auto --maxprocesses 4 --dist loadfile)

INPUTS := setup.py pyproject.toml constraints.txt
# pip passes -c to no build environment. It used to pass PIP_CONSTRAINT; newer versions read PIP_BUILD_CONSTRAINT there.
PIP_INSTALL := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	.venv/bin/python -m pip install --disable-pip-version-check --quiet

.PHONY: help train test lint soak clean
.DELETE_ON_ERROR:

help:
	@echo 'make train   train a small GPT model; ARGS="--recompute full" passes flags'
	@echo 'make test    lint and test; PY=python3 uses the Python and packages that you have'
	@echo 'make lint    ruff only'
	@echo 'make soak    the tests that take minutes'
	@echo 'make clean   delete .venv, caches and build products; runs/ stays'

train: $(TRAIN_STAMP)
	$(PYTHON) train.py --recompute selective $(ARGS)

test: lint
	$(PYTHON) -m pytest -m "not soak" $(WORKERS) $(ARGS)

lint: $(TEST_STAMP)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

soak: $(TEST_STAMP)
	$(PYTHON) -m pytest -m soak $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps, because .venv itself exists too where its making has failed half-way.
.venv/.python:
	@python=; broken=; \
	for name in python3 python3.11 python3.12 python3.13 python3.14; do \
		$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
		if $$name -c 'import ensurepip' >/dev/null 2>&1; then python=$$name; break; fi; \
		broken=$${broken:-$$name}; \
	done; \
	if [ -z "$$python" ] && [ -n "$$broken" ]; then \
		package=$$($$broken -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
		echo "error: $$broken cannot make virtual environments; on Debian and Ubuntu: apt-get install $$package" >&2; exit 1; \
	fi; \
	if [ -z "$$python" ]; then \
		echo "error: Megaselect needs Python 3.11 or newer, and no python3 here is; install one, or name it with PY=" >&2; exit 1; \
	fi; \
	$$python -m venv --clear .venv
	@touch $@

.venv/.train-installed: .venv/.python $(INPUTS)
	@echo 'Installing Megaselect and what it needs into .venv: about a minute, once.'
	@$(PIP_INSTALL) --editable '.[report]'
	@touch $@

.venv/.test-installed: .venv/.train-installed
	@echo 'Installing what the tests need into .venv.'
	@$(PIP_INSTALL) --editable '.[test]'
	@touch $@
