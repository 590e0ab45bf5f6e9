# make demo    sets everything up in .venv and cuts a real image into supervoxels
# make test    sets everything up in .venv and runs all checks and tests
# make docs    sets everything up in .venv and makes the documentation: site/index.html
#
# Another Python: make test PYTHON=python3.13

PYTHON ?= python3
# Two processes, a file each at a time: much of the time goes into waiting.
PYTEST ?= -q --durations=10 -n 2 --dist loadfile

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
EXAMPLE := from importlib.resources import files; print(files("nibabel") / "tests/data/example4d.nii.gz")

.DELETE_ON_ERROR:
.PHONY: demo test lint docs serve-docs dist picture figures clean

demo: demo/image.nii.gz
	@echo '$$ dseeds segment demo/image.nii.gz demo/labels.nii.gz --volume 0 --step 16mm --overwrite'
	@$(BIN)/dseeds segment demo/image.nii.gz demo/labels.nii.gz --volume 0 --step 16mm --overwrite
	@echo
	@echo 'The image is demo/image.nii.gz, its supervoxels are demo/labels.nii.gz: open both in any NIfTI viewer'
	@echo '(ITK-SNAP, 3D Slicer, FSLeyes), the labels as an overlay. Or go on: $(BIN)/dseeds --help'

# A brain in MR, two volumes of a series, that nibabel brings along.
demo/image.nii.gz: $(VENV)/.package
	@mkdir -p demo
	@cp "$$($(BIN)/python -c '$(EXAMPLE)')" $@

# The kernels are compiled once, not by each of the many processes that the tests start.
test: export DSEEDS_CACHE_DIR = $(abspath $(VENV))/kernels
test: lint docs
	@$(BIN)/dseeds compile
	@$(BIN)/python -m pytest $(PYTEST)

lint: $(VENV)/.dev
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

# The pages of docs/ as a site, in site/; warnings are errors, but not with --quiet.
docs: $(VENV)/.dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The same at http://127.0.0.1:8000, and again whenever a page changes.
serve-docs: $(VENV)/.dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# What a release consists of, in dist/.
dist: $(VENV)/.dev
	@rm -rf dist
	@$(BIN)/python -m build

# The pictures in the README and in docs/.
picture: $(VENV)/.dev
	@$(BIN)/python docs/picture.py
	@$(BIN)/python docs/figures.py

# The out-of-core run in the README: two workers of 1 GiB.
figures: $(VENV)/.package
	@mkdir -p demo
	@test -d demo/body.zarr || $(BIN)/dseeds phantom demo/body.zarr --shape 768,768,768
	@$(BIN)/dseeds segment demo/body.zarr demo/body-labels.zarr --step 16 --workers 2 --memory 1GiB --overwrite

clean:
	@rm -rf $(VENV) demo site dist

$(VENV)/.pip:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
		"dseeds needs Python 3.11 or later, not %s: say where, with make PYTHON=..." % sys.version.split()[0])'
	@echo 'Setting up $(VENV) ...'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.package: pyproject.toml $(VENV)/.pip
	@echo 'Installing dseeds ...'
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	@echo 'Installing what the tests need ...'
	@$(PIP) install --group dev
	@touch $@
