# Every target but `setup` and `clean` stands on the environment in .venv.
.PHONY: setup format lint test test-all test-cov demo picture bench docs lock clean

PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false
# One process a core, a file's tests in one of them; threads are shared out in conftest.py.
PARALLEL := --numprocesses=logical --dist=loadfile --no-loadscope-reorder

.venv/.ready: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	$(BIN)/loralab data fetch
	@touch $@

setup: .venv/.ready

format: setup
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/limits.py

test: setup
	$(BIN)/pytest $(PARALLEL)

test-all: setup
	$(BIN)/pytest $(PARALLEL) -m "slow or not slow"

test-cov: setup
	$(BIN)/pytest --cov --cov-report=term-missing:skip-covered

# Two adapters on real rows, measured against their bases, compared, and asked.
demo: setup
	$(BIN)/loralab train sms-spam
	$(BIN)/loralab train chatterbot
	$(BIN)/loralab compare sms-spam chatterbot
	$(BIN)/loralab infer sms-spam --with-base \
	    "WINNER! You have won a prize. Call 09061234567 to claim" \
	    "Are we still on for lunch tomorrow?"
	$(BIN)/loralab infer chatterbot --with-base --max-new-tokens 48 \
	    "My printer is not working." "What is your favorite book?"
	$(BIN)/loralab runs

# docs/images/demo.svg, of the runs that the demo has trained.
picture: setup
	$(BIN)/python docs/images/demo.py

bench: setup
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/plan.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/coverage.py
	$(BIN)/python benchmarks/ranks.py
	$(BIN)/python -m benchmarks.merging

# The site, in docs/_build/html; a warning is an error.
docs: setup
	$(BIN)/python -m sphinx -W --keep-going -n -q -E -d docs/_build/doctrees \
	    docs docs/_build/html

lock: setup
	$(BIN)/pip-compile --quiet --upgrade --extra dev --no-emit-index-url \
	    --no-emit-find-links --no-emit-trusted-host --strip-extras --no-header \
	    --annotation-style line --output-file requirements.lock pyproject.toml
	sed -i -e 's/^\(torch==[0-9.]*\)+cpu/\1/' \
	    -e '1i # The set that the tests ran on (Python 3.11, CPU).' requirements.lock

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache \
	    .hypothesis .coverage htmlcov dist build docs/_build
