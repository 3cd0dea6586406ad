# Everything that a person or a machine does with this project. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What runs from here lives in one folder of the checkout, so that trying it out leaves nothing elsewhere.
export CHAINRULE_HOME ?= $(CURDIR)/.chainrule
# Tests that start whole products have the machine to themselves; the others share its cores, a file at a time.
SHARED ?= tests/architecture tests/unit tests/distributed
ALONE ?= tests/deployment tests/e2e tests/integration
WORKERS ?= 2

.PHONY: help run serve test fmt lint types check bench soak compose-env lock clean
.DEFAULT_GOAL := help

help:            ## list the targets
	@awk -F ':.*## ' '/^[a-z.]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)     ## start everything, train handwritten digits on two workers over HTTP, show it, stop
	$(BIN)/chainrule run examples/digits.yaml

serve: $(VENV)   ## the same service, kept running until Ctrl-C
	$(BIN)/chainrule up

test: $(VENV)    ## all tests; TESTS="tests/unit ..." for some
ifdef TESTS
	$(BIN)/python -m pytest $(TESTS)
else
	@failed=0; \
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(SHARED) || failed=$$?; \
	$(BIN)/python -m pytest $(ALONE) || failed=$$?; \
	exit $$failed
endif

fmt: $(VENV)     ## format the code
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lint: $(VENV)    ## ruff, format included
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)   ## mypy, strict
	$(BIN)/mypy

check: lint types test ## what a change must pass

bench: $(VENV)   ## measure against the peers, side by side; JSON into benchmarks/results/
	$(BIN)/python -m benchmarks.step_time
	$(BIN)/python -m benchmarks.first_step
	$(BIN)/python -m benchmarks.checkpoint_stall
	$(BIN)/python -m benchmarks.recovery
	$(BIN)/python -m benchmarks.dashboard_open
	$(BIN)/python -m benchmarks.nanogpt
	$(BIN)/python -m benchmarks.reached

soak: $(VENV)    ## run 200 short jobs and compare what is left with what there was before
	$(BIN)/python -m benchmarks.soak

compose-env:     ## make the secrets of docker-compose.yml, in .env
	@mkdir -p data
	@$(PYTHON) deploy/compose_env.py .env

lock: $(VENV)    ## resolve the dependencies of pyproject.toml anew
	$(COMPILE) --upgrade --all-extras --output-file requirements.lock pyproject.toml
	# One pin for every build of torch (CPU, CUDA): pip picks the build, the lock names the release.
	$(TIDY) requirements.lock
	# What each image needs, in the same versions.
	$(COMPILE) --constraint requirements.lock --extra tracking --output-file deploy/requirements-control.lock pyproject.toml
	$(COMPILE) --constraint requirements.lock --extra training --output-file deploy/requirements-ray.lock pyproject.toml
	$(TIDY) deploy/requirements-control.lock deploy/requirements-ray.lock

COMPILE := $(BIN)/pip-compile --quiet --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
    --no-annotate --no-header
TIDY := sed -i -e 's/^\(torch==[0-9.]*\)+.*/\1/' -e '/^\#/d' -e '/^$$/d'

clean:           ## remove the virtual environment and what was run from this checkout
	rm -rf $(VENV) .chainrule build *.egg-info

# The marker is written last: an interrupted installation is done again.
$(VENV): $(VENV)/.installed
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}. Try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $(VENV)/.installed
