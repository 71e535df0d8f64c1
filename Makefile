# make train ARGS="--max-steps 100"    make train RANKS=2    make test    make test TORCH=2.11.0    make lint    make soak    make gpu    make clean
# `make test PY=python3` uses that Python and what is installed for it; without PY a virtual environment is made, and
# with TORCH another one, with that torch and what goes with it (a line of torch-versions.txt).

PY :=
TORCH :=
ARGS :=
# Processes that train together. The micro-batch is one that 1, 2 and 4 of them divide the default config's batch by.
RANKS :=
LAUNCHED = $(if $(RANKS), -m torch.distributed.run --nproc-per-node $(RANKS))
SMALLER = $(if $(RANKS), --training.micro-batch-size 2)

VENV := .venv$(if $(TORCH),-torch-$(TORCH))
ifeq ($(PY),)
PYTHON := $(VENV)/bin/python
TRAIN_STAMP := $(VENV)/.train-installed
TEST_STAMP := $(VENV)/.test-installed
else
PYTHON := $(PY)
endif

ifeq ($(TORCH),)
CONSTRAINTS := constraints.txt
PYTHON_NAMES := python3 python3.11 python3.12 python3.13 python3.14
NO_PYTHON := Megaselect needs Python 3.11 or newer, and no python3 here is; install one, or name it with PY=
else
CONSTRAINTS := $(VENV)/constraints.txt
# The fields of this version's line: torch, Python, packages.
ROW := $(shell awk '$$1 == "$(TORCH)"' torch-versions.txt)
ifeq ($(ROW),)
$(error no line of torch-versions.txt is for torch $(TORCH); it has $(shell awk '!/^#/ { print $$1 }' torch-versions.txt))
endif
PYTHON_NAMES := python$(word 2,$(ROW)) $(wildcard $(HOME)/.pyenv/versions/$(word 2,$(ROW)).*/bin/python)
NO_PYTHON := torch $(TORCH) is tested with Python $(word 2,$(ROW)), and there is no python$(word 2,$(ROW)) here
endif

# A process for each core, four at most, where pytest-xdist is installed. A file's tests share fixtures and so a process;
# in the order of tests/conftest.py.
WORKERS = $(shell $(PYTHON) -c 'import xdist' 2>/dev/null && echo --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder)

INPUTS := setup.py pyproject.toml $(CONSTRAINTS)
# pip passes -c to no build environment. It used to pass PIP_CONSTRAINT; newer versions read PIP_BUILD_CONSTRAINT there.
PIP_INSTALL := PIP_CONSTRAINT=$(CONSTRAINTS) PIP_BUILD_CONSTRAINT=$(CONSTRAINTS) \
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet

.PHONY: help train test lint soak gpu gpu-wheels clean
.DELETE_ON_ERROR:

help:
	@echo 'make train   train a small GPT model; ARGS="--recompute full" passes flags, RANKS=2 starts two ranks'
	@echo 'make test    lint and test; PY=python3 uses the Python and packages that you have'
	@echo 'make test TORCH=2.11.0   the same with another torch, in an environment of its own'
	@echo 'make lint    ruff, import contracts and types'
	@echo 'make soak    the tests that take minutes'
	@echo 'make gpu     bits, tests and benchmarks on a GPU in 9 minutes; DRY=1 rehearses it without one'
	@echo 'make clean   delete .venv, caches and build products; runs/ stays'

train: $(TRAIN_STAMP)
	$(PYTHON)$(LAUNCHED) train.py --recompute selective$(SMALLER) $(ARGS)

# An environment that keeps Python from writing bytecode has every worker compile every module anew, and every process that
# a test starts.
test: lint
	PYTHONDONTWRITEBYTECODE= $(PYTHON) -m pytest -m "not soak" $(WORKERS) $(ARGS)

lint: $(TEST_STAMP)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -c 'from importlinter.cli import lint_imports_command as lint; lint()'
	$(if $(TORCH),,$(PYTHON) -m mypy)

soak: $(TEST_STAMP)
	$(PYTHON) -m pytest -m soak $(ARGS)

# What a GPU image has (GPU_TORCH and what belongs to it, NumPy, pytest, transformers) and nothing else: there `make gpu`
# takes its Python and what `make gpu-wheels` has made here. DRY=1 makes an environment like that, for a rehearsal.
DRY :=
GPU_TORCH := 2.11.0
GPU_VENV := .venv-gpu
# What transformers' command line brings, and not every image has.
NOT_IN_IMAGES := typer pydantic pydantic_core annotated-types typing-inspection rich markdown-it-py mdurl
GPU_PYTHON := $(or $(PY),$(if $(DRY),$(GPU_VENV)/bin/python,$(if $(wildcard .venv/.train-installed),.venv/bin/python,python3)))

gpu: $(if $(DRY),gpu-wheels)
	$(GPU_PYTHON) -m benchmarks.gpu $(if $(DRY),--dry) $(ARGS)

gpu-wheels:
	@$(MAKE) --no-print-directory TORCH=$(GPU_TORCH) VENV=$(GPU_VENV) $(GPU_VENV)/.image-installed build/gpu-wheels/.made
	@$(GPU_VENV)/bin/python -m benchmarks.gpu.origin build/gpu-wheels/origin.json

$(VENV)/.image-installed: $(VENV)/.python $(CONSTRAINTS)
	@echo 'Installing what a GPU image has into $(VENV): some GB, once.'
	@$(PIP_INSTALL) torch triton numpy pytest transformers
	@$(VENV)/bin/python -m pip uninstall --quiet --yes $(NOT_IN_IMAGES)
	@touch $@

# For any image with glibc 2.28 and its Python; pip takes exactly the platforms that are named.
build/gpu-wheels/.made: benchmarks/gpu/wheels.txt $(CONSTRAINTS)
	@rm -rf $(@D)
	@mkdir -p $(@D)
	@PIP_CONSTRAINT=$(CONSTRAINTS) $(VENV)/bin/python -m pip download --disable-pip-version-check --quiet --no-deps \
		--only-binary=:all: --implementation cp --python-version $(word 2,$(ROW)) --platform manylinux_2_28_x86_64 \
		--platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest $(@D) -r benchmarks/gpu/wheels.txt
	@touch $@

clean:
	rm -rf .venv .venv-torch-* .venv-gpu build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps, because .venv itself exists too where its making has failed half-way.
$(VENV)/.python:
	@python=; broken=; \
	for name in $(PYTHON_NAMES); do \
		$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
		if $$name -c 'import ensurepip' >/dev/null 2>&1; then python=$$name; break; fi; \
		broken=$${broken:-$$name}; \
	done; \
	if [ -z "$$python" ] && [ -n "$$broken" ]; then \
		package=$$($$broken -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
		echo "error: $$broken cannot make virtual environments; on Debian and Ubuntu: apt-get install $$package" >&2; exit 1; \
	fi; \
	if [ -z "$$python" ]; then \
		echo "error: $(NO_PYTHON)" >&2; exit 1; \
	fi; \
	$$python -m venv --clear $(VENV)
	@touch $@

# The line's packages in place of those of constraints.txt; what pip reads later would conflict, not override.
$(VENV)/constraints.txt: constraints.txt torch-versions.txt $(VENV)/.python
	@{ printf '%s\n' torch==$(TORCH) $(wordlist 3,9,$(ROW)); cat constraints.txt; } | awk -F== '!seen[$$1]++' > $@

$(VENV)/.train-installed: $(VENV)/.python $(INPUTS)
	@echo 'Installing Megaselect and what it needs into $(VENV): about a minute, once.'
	@$(PIP_INSTALL) --editable '.[report]'
	@touch $@

$(VENV)/.test-installed: $(VENV)/.train-installed
	@echo 'Installing what the tests need into $(VENV).'
	@$(PIP_INSTALL) --editable '.[test]'
	@touch $@
