# make demo    sets everything up in .venv and cuts a real image into supervoxels
# make check   lint and unit tests, without Dask worker processes: a few minutes
# make test    lint, documentation and all tests
# make newest  what depends on other packages, on the newest Python and packages that can be had: two minutes
# make lint    ruff, mypy and the import contracts
# make docs    builds the documentation: site/index.html
#
# Another Python: make test PYTHON=python3.13. More processes: make test JOBS=8.

PYTHON ?= python3
# More than two cores' worth: some tests wait for processes and stores.
JOBS ?= 3
# A process that has run out of tests takes over some of another's.
PYTEST ?= -q --durations=10 -n $(JOBS) --dist worksteal
UNITS := core seeds io storage parallel measure quality engine api cli phantom viz convert benchmark

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
COMPARE := import dseeds, zarr; \
	image, labels = (zarr.open_array(f"demo/{name}.zarr/0", mode="r")[:] for name in ("small", "small-labels")); \
	assert (labels == dseeds.supervoxels(image, step=12)).all(); print("identical to the labels in memory, in every voxel")
EXAMPLE := from importlib.resources import files; print(files("nibabel") / "tests/data/example4d.nii.gz")

# The newest Python on this machine that is newer than that of `make test`, also among those of pyenv: Zarr 3.2 and NumPy
# 2.5 need 3.12. `make test` stands for the oldest, 3.11 with Zarr 3.1, if that is what python3 is.
PYENVS := $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.1[2-9].*/bin/python3
IS_NEWER := import sys; sys.exit(sys.version_info[:2] <= tuple(map(int, sys.argv[1:])))
NEWEST_PYTHON ?= $(shell version=$$($(PYTHON) -c 'import sys; print(*sys.version_info[:2])'); \
	for python in python3.14 python3.13 python3.12 $$(ls -d $(PYENVS) 2> /dev/null | sort -rV); do \
	"$$python" -c '$(IS_NEWER)' $$version 2> /dev/null && echo "$$python" && break; done)
NEWEST := .venv-newest
# A file with the versions to stay at or below; without one, the newest that there are.
NEWEST_LIMITS ?=
# Forks, Zarr in scratch, labels of all kinds against hashes, and the user's Dask: what depends on Python, NumPy, Numba,
# Zarr and Dask, of which `make test` may have older ones.
NEWEST_TESTS := tests/core/test_forks.py tests/storage/test_zarr_arrays.py tests/api/test_golden_labels.py \
	tests/integration/test_users_dask.py

.DELETE_ON_ERROR:
.PHONY: demo check test newest newest-tests kernels lint docs serve-docs dist picture figures clean

demo: demo/image.nii.gz
	@echo 'A brain in MR, in this process:'
	@echo '$$ dseeds segment demo/image.nii.gz demo/labels.nii.gz --volume 0 --step 16mm --overwrite'
	@$(BIN)/dseeds segment demo/image.nii.gz demo/labels.nii.gz --volume 0 --step 16mm --overwrite
	@echo
	@echo 'The image is demo/image.nii.gz, its supervoxels are demo/labels.nii.gz: open both in any NIfTI viewer'
	@echo '(ITK-SNAP, 3D Slicer, FSLeyes), the labels as an overlay.'
	@echo
	@echo 'A phantom of a body, out of core on two Dask workers:'
	@echo '$$ dseeds phantom demo/small.zarr --shape 128,160,160 --overwrite'
	@$(BIN)/dseeds phantom demo/small.zarr --shape 128,160,160 --overwrite --quiet
	@echo '$$ dseeds segment demo/small.zarr demo/small-labels.zarr --step 12 --region 72 --workers 2 --overwrite'
	@$(BIN)/dseeds segment demo/small.zarr demo/small-labels.zarr --step 12 --region 72 --workers 2 --overwrite
	@$(BIN)/python -c '$(COMPARE)'
	@echo
	@echo 'Go on with $(BIN)/dseeds --help, or with docs/tutorial.md'

# A brain in MR, two volumes of a series, that nibabel brings along.
demo/image.nii.gz: $(VENV)/.package
	@mkdir -p demo
	@cp "$$($(BIN)/python -c '$(EXAMPLE)')" $@

# Kernels are compiled once, not by each of the many processes that tests start. Meanwhile other cores lint.
check test kernels: export DSEEDS_CACHE_DIR = $(abspath $(VENV))/kernels
check: $(VENV)/.dev
	@$(MAKE) --no-print-directory -j2 kernels lint
	@$(BIN)/python -m pytest $(PYTEST) -m "not slow and not dask" $(UNITS:%=tests/%) dseeds

test: $(VENV)/.dev
	@$(MAKE) --no-print-directory -j2 kernels lint docs
	@$(BIN)/python -m pytest $(PYTEST)

newest:
	@if [ -n '$(NEWEST_PYTHON)' ]; then $(MAKE) --no-print-directory newest-tests; \
		else echo 'There is no newer Python here than that of make test: name one, with make newest NEWEST_PYTHON=...'; fi

newest-tests: export DSEEDS_CACHE_DIR = $(abspath $(NEWEST))/kernels
newest-tests: $(NEWEST)/.test
	@$(NEWEST)/bin/python -c 'import dask, numba, numpy, sys, zarr; print("Python", sys.version.split()[0], \
		*(f"{module.__name__} {module.__version__}" for module in (numpy, numba, zarr, dask)), sep=", ")'
	@$(NEWEST)/bin/python -m pytest $(PYTEST) -m "not slow" $(NEWEST_TESTS)

kernels: $(VENV)/.dev
	@$(BIN)/dseeds compile

lint: $(VENV)/.dev
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# Warnings are errors, but not with --quiet.
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
	@rm -rf $(VENV) $(NEWEST) demo site dist

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

$(NEWEST)/.test: pyproject.toml
	@echo 'Setting up $(NEWEST) with $(NEWEST_PYTHON) ...'
	@$(NEWEST_PYTHON) -m venv --clear $(NEWEST)
	@$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --editable . --group newest \
		$(NEWEST_LIMITS:%=--constraint %)
	@touch $@
