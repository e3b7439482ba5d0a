# Every door of the project. Needs python3.11 (with venv), make, gcc and git; all else comes through pip into .venv.
PYTHON ?= python3.11
BIN := .venv/bin
SETUP := .venv/.setup-done
PROTO := proto/chaperone/v1/supervision.proto
STUBS := common/chaperone_common/pb
DEPLOYMENT := .cache/deployment-checks
AIDER := .cache/aider
PYTHONS := .cache/pythons
DEVICES := $(foreach version,3.11 3.12 3.13,$(PYTHONS)/$(version)/.done)
SHIPPED := common/chaperone_common edge_client cloud_supervisor link_emulator

export PATH := $(CURDIR)/$(BIN):$(PATH)
export ORT_DISABLE_TELEMETRY := 1
export HF_HUB_DISABLE_TELEMETRY := 1
# Tests and benchmarks start hundreds of processes. Without the cache of byte code, each compiles all modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test check test-models bench models wheel proto clean fuzz audit \
        check-style check-types check-imports check-proto check-docs check-wording check-security check-deployment

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "make %-14s %s\n", $$1, $$2}'

setup: $(SETUP) ## .venv with everything, pinned by constraints.txt

$(SETUP): pyproject.toml link_emulator/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt \
	  -e '.[edge,serve,cloud,build,portable,calibrate,train,otel,ray,dev]' -e ./link_emulator
	touch $@

demo: $(SETUP) ## the default pair, cloud and device as two processes, side by side with plain streaming
	$(BIN)/python -m examples.demo

# A file is the unit, since its tests share servers and models. Tests wait a third of their time, for processes and links:
# so there is one worker more than the cores of a small machine. The longest files come first (tests/conftest.py), and
# xdist must not put those with most tests before them.
WORKERS ?= 3
test: $(SETUP) $(AIDER)/.done $(DEVICES) ## all tests that need packages only, no other download
	$(BIN)/python -m pytest -m "not models" --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# Environments that some tests need. Where one cannot be made, this says why, and those tests skip with the reason.
$(AIDER)/.done: tools/aider.txt | $(SETUP)
	@$(BIN)/python -m tools.environments aider

$(PYTHONS)/%/.done: pyproject.toml constraints.txt | $(SETUP)
	@$(BIN)/python -m tools.environments $*

test-models: models ## tests of the default pair
	$(BIN)/python -m pytest tests/models -m models $(ARGS)

models: $(SETUP) ## fetch and convert the default pair; does nothing if it is there
	$(BIN)/chaperone-cloud models pull --pair default

bench: models ## all that is reported, made again in under 5 hours, 6 without AVX-512; goes on where it was interrupted
	$(BIN)/python -m benchmarks all $(ARGS)

check: check-style check-types check-imports check-proto check-docs check-wording check-security check-deployment ## linters, types, imports, wire contract, docs, wording, security, deployment

check-style: $(SETUP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

check-types: $(SETUP)
	$(BIN)/mypy

check-imports: $(SETUP)
	$(BIN)/lint-imports

# The contract is well written, breaks nothing it said two changes ago, and the committed stubs are those it generates.
check-proto: $(SETUP)
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	@set -e; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; mkdir $$work/stubs; \
	base=$$(git log -2 --format=%H -- proto 2>/dev/null | tail -n 1); \
	if [ -n "$$base" ]; then \
	  echo "buf breaking, against $$base"; \
	  git archive "$$base" proto | tar -x -C "$$work"; \
	  $(BIN)/buf breaking --against "$$work" --against-config buf.yaml; \
	fi; \
	$(call protoc,$$work/stubs); \
	diff -r -x __init__.py -x __pycache__ $(STUBS) "$$work/stubs" || { echo 'stale stubs: run make proto' >&2; exit 1; }

check-docs: $(SETUP)
	$(BIN)/python -m tools.docs --check

check-wording: $(SETUP)
	$(BIN)/python -m tools.wording

# No Docker engine and no cluster: images, Compose file and manifests are read, not run. checkov looks up nothing online.
check-deployment: $(DEPLOYMENT)/.done
	$(DEPLOYMENT)/bin/hadolint docker/*.Dockerfile
	$(DEPLOYMENT)/bin/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml
	$(DEPLOYMENT)/bin/kubernetes-validate --strict --quiet docker/k8s/*.yaml docker/k8s/templates/*.yaml
	$(DEPLOYMENT)/bin/checkov --framework dockerfile kubernetes --directory docker --skip-download --quiet --compact

$(DEPLOYMENT)/.done: tools/deployment-checks.txt
	rm -rf $(DEPLOYMENT)
	$(PYTHON) -m venv $(DEPLOYMENT)
	$(DEPLOYMENT)/bin/python -m pip install --disable-pip-version-check --quiet --no-compile --no-deps -r $<
	$(DEPLOYMENT)/bin/python -m pip check --disable-pip-version-check
	touch $@

check-security: $(SETUP)
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml $(SHIPPED)

# Not part of `check`: the answer comes from an advisory service, and changes without a change here.
audit: $(SETUP) ## known vulnerabilities of the pinned dependencies; needs an advisory service
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

FUZZ_SECONDS ?= 600
fuzz: $(SETUP) ## search for hostile input, FUZZ_SECONDS for each target; keeps what it learns in .cache/fuzz
	@set -e; for target in frame_decoder cloud_session; do \
	  mkdir -p .cache/fuzz/$$target; \
	  PYTHONPATH=.:common $(BIN)/python -m tests.fuzz $$target -max_total_time=$(FUZZ_SECONDS) -max_len=600 \
	    -artifact_prefix=.cache/fuzz/$$target- .cache/fuzz/$$target tests/fuzz/corpus/$$target; \
	done

wheel: $(SETUP) ## the wheel for a device without a checkout, in dist
	$(BIN)/python -m pip wheel --disable-pip-version-check --quiet --no-deps --no-build-isolation --wheel-dir dist .

proto: $(SETUP) ## regenerate the stubs in common/chaperone_common/pb
	$(call protoc,$(STUBS))

protoc = $(BIN)/python -m grpc_tools.protoc -I proto --python_out=$(1) --mypy_out=quiet:$(1) $(PROTO)

clean: ## remove what was made here, .venv too; pulled models stay
	rm -rf .venv .cache .hypothesis build dist
	find . -type d \( -name __pycache__ -o -name '.*_cache' \) -prune -exec rm -rf {} +
