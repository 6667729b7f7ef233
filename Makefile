# make run    sets up .venv and starts the server       make run ARGS="--model sd15 --port 9000"
# make test   the same set-up, then the whole suite     make test ARGS="tests/pipeline -x"
#             in two processes (make test WORKERS=4), and after that, one by one, the tests that are marked `calm`
# make prove  what takes real parts, long runs or time bounds, the soak of 30 minutes among it (make prove MINUTES=5);
#             its figures go to benchmarks/results/prove
# pip reads its own environment variables and configuration, so PIP_INDEX_URL, PIP_FIND_LINKS and the like apply.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
WORKERS ?= 2
MINUTES ?= 30

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

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

setup: $(VENV)/installed

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "LCMirror needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
