# `make train` and `make test` are all that a newcomer needs; both work with only Python >= 3.11 and make.

# the first Python that is new enough; `make PYTHON=/path/to/python ...` chooses another
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

ENV ?= CartPole-v1
SEED ?= 0
# no key, no question, no network; `make train WANDB_MODE=online` uploads
WANDB_MODE ?= offline
PYTEST_ARGS ?=
# tests run in so many processes; each file in one of them, because fixtures are made per process
JOBS ?= 2

# small networks: a second thread only costs time
export OMP_NUM_THREADS ?= 1

.PHONY: help install train test test-slow docs lint format type

help:
	@echo "make train      install into $(VENV), train $(ENV), evaluate it, draw its learning curve"
	@echo "make test       install into $(VENV), then ruff, mypy and the tests"
	@echo "make test-slow  the tests that take minutes each: learning runs, large samples, the report in Chromium (.ci/chromium)"
	@echo "make docs       the documentation as a site: site/index.html"
	@echo "make lint | format | type | install   one step of these alone"

install: $(STAMP)

# One environment for everything, made once and brought up to date when what it is made from changes.
# torch goes first: see constraints.txt.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 on PATH; name one: make PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[all]"
	@touch $@

train: $(STAMP)
	$(BIN)/sb3-reinforce train --env $(ENV) --seed $(SEED) -P --track --wandb-mode $(WANDB_MODE) --eval-final 100

test: lint type
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

# pytest ends with 5 where no test is marked slow
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS) || [ $$? -eq 5 ]

# -W: a warning, such as a link that leads nowhere, is an error. -E reads all pages anew: a docstring may have changed
docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -E -q -b html -c docs . site
	@echo "The site: site/index.html"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

type: $(STAMP)
	$(BIN)/mypy
