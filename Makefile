# Needs Python >= 3.11 and make; everything else goes into .venv. `make help` lists the targets.

PYTHON ?= python3
# Passed to pip. On Linux with an NVIDIA driver nothing is needed; to avoid the CUDA packages:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
ARGS ?=
BUF := npx --yes --package @bufbuild/buf@1.75.0 buf

VENV := .venv
PY := $(VENV)/bin/python
PROTO_VENV := .venv-proto
PROTO_PY := $(PROTO_VENV)/bin/python
INPUTS := pyproject.toml constraints.txt
PIP := -m pip --disable-pip-version-check install --quiet
TEACHER := examples/embedded_teacher
EMBEDDED := server/carv_server/teachers/embedded/shapes

# Models come from folders; no command of this repository asks a model hub for anything.
export HF_HUB_OFFLINE := 1
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-statistics lint check format proto proto-check variance convergence \
	bench bench-ray peers soak teacher deploy-check rehearse clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(VENV)/.demo ## a prompt becomes a 3-D object; writes out/demo (ARGS="--prompt '...'")
	$(VENV)/bin/carv demo $(ARGS)

test: $(VENV)/.dev ## the test suite (ARGS="tests/repository -k name")
	$(PY) -m pytest $(or $(ARGS),-n 2)

test-statistics: $(VENV)/.dev ## the slow suites: statistics at depth, long proofs, the demo end to end
	$(PY) -m pytest -m slow $(ARGS)

lint: $(VENV)/.dev proto-check ## style, format, types, import boundaries, stub drift, buf, deploy/
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) tests/repository/import_boundaries.py
	$(PY) -m pyright
	@if command -v npx >/dev/null; then echo "$(BUF) lint proto"; $(BUF) lint proto; \
	else echo "lint: buf lint skipped, because npx is not installed"; fi
	$(PY) -m deploy.validate

deploy-check: $(VENV)/.dev ## the part of lint that looks at Dockerfiles, compose, Kubernetes, alerts
	$(PY) -m deploy.validate

rehearse: $(VENV)/.dev ## the Dockerfiles' steps without an engine; root, Linux (builds no image)
	$(PY) -m deploy.docker.rehearse --build-arg TORCH_INDEX= $(ARGS)

check: lint test ## what CI runs

format: $(VENV)/.dev ## let ruff format and fix what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

proto: $(PROTO_VENV)/.ready ## regenerate the committed stubs
	$(PROTO_PY) proto/generate.py

proto-check: $(PROTO_VENV)/.ready ## fail if the committed stubs differ from the .proto files
	$(PROTO_PY) proto/generate.py --check

variance: $(VENV)/.demo ## variance benchmark, about 35 minutes (ARGS="--quick" for two)
	$(VENV)/bin/carv bench variance $(ARGS)

convergence: $(VENV)/.demo ## plain SDS and CARV at equal compute, 3 prompts and 5 seeds, 25 minutes
	$(VENV)/bin/carv bench convergence $(ARGS)

bench: $(VENV)/.demo ## what the service costs, about 15 minutes (ARGS="--quick" for four)
	$(VENV)/bin/carv bench serving $(ARGS)

peers: $(VENV)/.demo ## CARV and other model servers under the same work, about 40 minutes
	$(VENV)/bin/carv bench peers $(ARGS)

# The slow half of tests/PROOFS.md, and then the load.
SLOW_PROOFS := tests/fuzz tests/lifecycle tests/server/test_tenant_shares.py tests/deploy

soak: $(VENV)/.dev ## the slow proofs of operation, then ten minutes at full load, with a control that leaks
	$(PY) -m pytest -m slow $(SLOW_PROOFS)
	$(PY) -m benchmarks.soak $(ARGS)

bench-ray: $(VENV)/.dev ## scaling, crossing cost and loss of Ray replicas, five minutes
	$(PY) -m benchmarks.ray_scaling $(ARGS)

teacher: $(VENV)/.dev ## retrain and evaluate the embedded teacher, under an hour on two cores
	$(PY) $(TEACHER)/train_autoencoder.py encoder
	$(PY) $(TEACHER)/train_autoencoder.py decoder
	$(PY) $(TEACHER)/train.py --out $(EMBEDDED)
	$(PY) $(TEACHER)/evaluate.py --folder $(EMBEDDED)

clean: ## remove environments, caches and build outputs (keeps out/)
	rm -rf $(VENV) $(PROTO_VENV) dist build .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Environments: rebuilt only when pyproject.toml or constraints.txt changes.

$(PY):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is \
	needed, this is %s; name another with make PYTHON=..." % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(PY) $(PIP) "pip>=25.1" # the first that installs dependency groups

$(VENV)/.demo: $(INPUTS) | $(PY)
	@echo "installing carv[demo] into $(VENV); the first time takes a few minutes"
	$(PY) $(PIP) $(PIP_ARGS) -c constraints.txt -e ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "installing the development tools into $(VENV)"
	$(PY) $(PIP) $(PIP_ARGS) -c constraints.txt -e ".[demo,ray]" --group dev
	@touch $@

$(PROTO_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(PROTO_VENV)
	$(PROTO_PY) $(PIP) "pip>=25.1"
	$(PROTO_PY) $(PIP) $(PIP_ARGS) --group proto
	@touch $@
