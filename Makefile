# make run    sets up .venv and starts the server       make run ARGS="--model sd15 --port 9000"
# make test   the same set-up, then the whole suite     make test ARGS="tests/pipeline -x"
#             in two processes (make test WORKERS=4), and after that, one by one, the tests that are marked `calm`
# make prove  what takes real parts, long runs or time bounds, the soak of 30 minutes among it (make prove MINUTES=5);
#             its figures go to benchmarks/results/prove
# make lint   ruff, mypy, and biome for the pages where there is npm
# pip reads its own environment variables and configuration, so PIP_INDEX_URL, PIP_FIND_LINKS and the like apply.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
WORKERS ?= 2
MINUTES ?= 30
NPM := $(shell command -v npm 2>/dev/null)
CLIENTS := tests/clients/node_modules/.package-lock.json

.PHONY: run test prove lint setup

run: setup
	@$(BIN)/python main.py $(ARGS)

test: setup
ifneq ($(ARGS),)
	@$(BIN)/python -m pytest $(ARGS)
else
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not calm and not prove"
	@$(BIN)/python -m pytest -m "calm and not prove"
endif

prove: setup
	@$(BIN)/python -m pytest -m prove
	@$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) --json benchmarks/results/prove/soak-mini-cpu.json

lint: setup $(if $(NPM),$(CLIENTS))
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
ifneq ($(NPM),)
	@tests/clients/node_modules/.bin/biome check --error-on-warnings
else
	@echo "static/ was not checked: biome needs npm, which comes with Node.js." >&2
	@test -z "$$LCMIRROR_REQUIRE_CLIENTS"
endif

$(CLIENTS): tests/clients/package-lock.json
	npm ci --prefix tests/clients --ignore-scripts --no-audit --no-fund

setup: $(VENV)/installed

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "LCMirror needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
