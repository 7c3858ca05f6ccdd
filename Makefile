# make train   sets up a virtual environment and runs the main job
# make test    sets it up and runs the tests
# make bench   times everything beside its peers (pinned in the extra `bench`) and writes the tables of the README
# make compare trains four families on the embedded digits and writes one table of them
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv$(if $(filter-out python3 python,$(notdir $(PYTHON))),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
READY := $(VENV)/ready
PEERS := $(VENV)-bench

.PHONY: train test test-all compare bench lock clean

train: $(READY)
	$(BIN)/python train.py configs/vae/vae_digits.py

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" -n 2

test-all: $(READY)
	$(BIN)/python -m pytest -n 2

compare: $(READY)
	$(BIN)/python -m gen_jax compare --out runs/compare --configs \
		configs/mixture/gmm_digits.py configs/vae/vae_digits.py configs/flow/nsf_digits.py configs/gan/dcgan_digits.py

bench: $(PEERS)/ready
	$(PEERS)/bin/python -m benchmarks.run --write README.md

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
	$(BIN)/uv pip compile --universal --upgrade --extra test --no-header --no-annotate --no-emit-index-url \
		--no-emit-find-links pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv* build *.egg-info
