# make train     sets up a virtual environment and trains a VAE on embedded digits
# make test      sets it up and runs the tests; make test-all also runs the slow ones
# make study-test  tests the pages of studies and comparisons in Chromium, after make study-tools
# make lint      checks format, style and types
# make docs      builds the documentation into site/
# make tables    writes the pages of results from the records of benchmarks
# make compare   trains four families on the embedded digits and compares them
# make bench     times everything beside its peers (pinned in the extra `bench`)
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv$(if $(filter-out python3 python,$(notdir $(PYTHON))),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
READY := $(VENV)/ready
PEERS := $(VENV)-bench
SOURCES := gen_jax configs benchmarks tests train.py

.PHONY: train test test-all study-tools study-test lint format docs tables compare bench lock clean

train: $(READY)
	$(BIN)/python train.py configs/vae/vae_digits.py

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

test-all: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The page of human studies is tested in Chromium (Debian's package), which playwright drives.
study-tools: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock --editable ".[study-test]"

study-test: $(READY)
	$(BIN)/python -m pytest -m "not slow" tests/applications/test_study_browser.py tests/evaluation/test_comparison_browser.py

lint: $(READY)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: $(READY)
	$(BIN)/python -m benchmarks.tables --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

tables: $(READY)
	$(BIN)/python -m benchmarks.tables

compare: $(READY)
	$(BIN)/python -m gen_jax compare --out runs/compare --configs gmm_digits vae_digits nsf_digits dcgan_digits
	$(BIN)/python -m benchmarks.tables --keep runs/compare/compare.json

bench: $(PEERS)/ready
	$(PEERS)/bin/python -m benchmarks.run
	$(PEERS)/bin/python -m benchmarks.tables

# The peers live in an environment of their own: tests must not find TensorFlow or PyTorch.
$(PEERS)/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock --editable ".[bench]"
	@touch $@

# Reinstalls only when the lock file or pyproject.toml changes.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "gen_jax needs Python 3.11, 3.12 or 3.13: try make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# Resolves the newest versions again, for every supported Python at once.
lock: $(READY)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --universal --upgrade --extra test --extra lint --extra docs --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv* build site *.egg-info
