# On a fresh Debian-like machine with Python 3.11 or newer: `make run` and `make test`.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.ONESHELL:
MAKEFLAGS += --no-print-directory --no-builtin-rules

# Use the machine's certificates, as pip does, so that an organization's own index works.
export UV_SYSTEM_CERTS ?= 1
# Keep bytecode, whatever the environment says: each of the processes that tests start would compile all it imports.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
PROTO_BIN := .venv-proto/bin
RELEASE_BIN := .venv-release/bin
FLOOR_BIN := .venv-floor/bin
RECORDINGS ?= ../shared/audio
# Tests run in so many processes, a file in one of them. Half of their time is waiting, so these are twice the cores of a
# small machine; 0 runs them in this process, with a debugger, say.
WORKERS ?= 4
# The tests that took longest are printed at the end.
PYTEST := $(BIN)/python -m pytest --durations=20 --durations-min=5
PROTOS := $(wildcard protos/typeless/v1/*.proto protos/typeless/engine/v1/*.proto)
# How long `make fuzz` takes for each target, and which: all unless named.
SECONDS ?= 60
TARGETS ?=
# Of `make hardening` and `make soak`: a factor for every length, the parts (all unless named), the length of the soak.
SCALE ?= 1
PARTS ?=
MINUTES ?= 60
# `make audit AUDIT=required` fails if the advisories cannot be read.
AUDIT ?=
# `make run MODEL=small` passes a flag, which overrides TYPELESS_MODEL and the settings file.
MODEL ?=
# The commit `buf breaking` compares with: the last release, else the first commit that has the protos.
BASE ?= $(shell git describe --tags --abbrev=0 2>/dev/null || git log --diff-filter=A --format=%H -- protos/typeless/v1/audio.proto | tail -n 1)

.PHONY: help run demo test check fmt lint type proto golden verify floors bench clients packages system cluster-test cluster-short dist audit fuzz fuzz-short hardening soak lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

# ---- environments -------------------------------------------------------------------------------------------

$(UV):
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
	  echo "typeless-grpc needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1
	fi
	if ! $(PYTHON) -m venv $(VENV) >/dev/null 2>&1; then
	  rm -rf $(VENV)
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	    apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
	    $(PYTHON) -m venv $(VENV)
	  else
	    echo "Python's venv module is missing. On Debian: sudo apt-get install python3-venv" >&2; exit 1
	  fi
	fi
	$(BIN)/python -m pip install -q --disable-pip-version-check uv

# What `make run` needs.
$(VENV)/server.stamp: requirements/server.lock pyproject.toml | $(UV)
	@echo "Installing the server into $(VENV) …"
	$(UV) pip install -q --compile-bytecode --python $(BIN)/python -r requirements/server.lock
	$(UV) pip install -q --python $(BIN)/python --no-deps -e .
	touch $@

# What the tests and the tools need in addition.
$(VENV)/dev.stamp: requirements/dev.lock $(VENV)/server.stamp
	@echo "Installing the development tools into $(VENV) …"
	$(UV) pip install -q --compile-bytecode --python $(BIN)/python -r requirements/dev.lock
	touch $@

$(PROTO_BIN)/protoc-gen-mypy: requirements/proto.lock | $(UV)
	@$(UV) venv -q --clear --python $(BIN)/python .venv-proto
	$(UV) pip install -q --python $(PROTO_BIN)/python -r requirements/proto.lock
	touch $@

$(RELEASE_BIN)/cyclonedx-py: requirements/release.lock | $(UV)
	@$(UV) venv -q --clear --python $(BIN)/python .venv-release
	$(UV) pip install -q --python $(RELEASE_BIN)/python -r requirements/release.lock
	touch $@

lock: | $(UV) ## resolve the dependencies again into requirements/
	@compile() { $(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --upgrade "$$@"; }
	compile pyproject.toml --all-extras --group dev -o requirements/dev.lock
	compile pyproject.toml --extra server -c requirements/dev.lock -o requirements/server.lock
	compile --group pyproject.toml:proto -o requirements/proto.lock
	compile --group pyproject.toml:release -o requirements/release.lock
	compile pyproject.toml --all-extras --group dev --resolution lowest-direct -o requirements/floor.lock

# ---- use ----------------------------------------------------------------------------------------------------

run: $(VENV)/server.stamp ## install the server and serve on port 50051
	@exec $(BIN)/typeless serve $(if $(MODEL),--model $(MODEL))

demo: $(VENV)/server.stamp ## stream a sample to a server of its own and print the text
	@exec $(BIN)/typeless stream --local --realtime $(if $(MODEL),--model $(MODEL)) tests/audio/en_two_sentences.flac

# ---- checks -------------------------------------------------------------------------------------------------

test: $(VENV)/dev.stamp $(PROTO_BIN)/protoc-gen-mypy ## install everything and run all tests
	@for model in tiny.en base; do $(BIN)/typeless models pull $$model >/dev/null; done
	$(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

clients: $(VENV)/dev.stamp ## build the example clients whose toolchain is installed, and test them
	@$(BIN)/typeless models pull tiny.en >/dev/null
	$(PYTEST) -m clients -n 2 --dist loadfile tests/clients $(ARGS)

packages: $(VENV)/dev.stamp ## build the packages and install them in clean environments
	@$(PYTEST) -m packages -n 2 --dist loadfile tests/packages $(ARGS)

system: $(VENV)/dev.stamp ## run a whole installation under mixed traffic for two minutes, and account for every call; a short make hardening
	@for model in tiny.en base; do $(BIN)/typeless models pull $$model >/dev/null; done
	$(PYTEST) -m system -n 3 --dist loadfile tests/system tests/hardening $(ARGS)

# CLUSTER=short runs what CI runs, in about a minute.
cluster-test: $(VENV)/dev.stamp ## run servers, engines, workers, stores and a proxy on a network, with faults (Linux, as root)
	@$(BIN)/python -m tests.cluster tests/cluster -m 'cluster$(if $(filter short,$(CLUSTER)), and short)' $(ARGS)

cluster-short:
	@if [ "$$(id -u)" = 0 ]; then $(MAKE) cluster-test CLUSTER=short; else echo "skipped without root: make cluster-test"; fi

check: lint type test verify fuzz-short ## run all that CI runs: lint, type, test, verify, fuzz, cluster-test, system, clients, packages, audit
	@$(MAKE) --jobs=2 --output-sync=target system clients packages cluster-short audit  # two at a time: they wait more than they compute

fuzz: $(VENV)/dev.stamp ## try inputs that coverage suggests in every reader of bytes from outside: SECONDS=60 for each, or TARGETS="requests"
	@$(BIN)/python -m tests.fuzz $(SECONDS) $$(nproc) $(TARGETS)

fuzz-short: $(VENV)/dev.stamp
	@$(BIN)/python -m tests.fuzz 1 $$(nproc)

# SCALE=0.1 takes a tenth of the time, and leaves the tables as they are. PARTS="load leaks" runs only these.
hardening: $(VENV)/dev.stamp ## run all that tries to break the server, and write the figures into docs/reliability.md (an hour)
	@$(BIN)/typeless models pull tiny.en >/dev/null
	$(BIN)/python -m tests.hardening --scale $(SCALE) $(PARTS)

soak: $(VENV)/dev.stamp ## load a server at 70 % for MINUTES=60
	@$(BIN)/python -m tests.hardening --minutes $(MINUTES) soak

lint: $(VENV)/dev.stamp ## check the style of code and protos; edits nothing
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd protos && ../$(BIN)/buf lint

fmt: $(VENV)/dev.stamp ## format code and protos
	@$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	cd protos && ../$(BIN)/buf format -w

type: $(VENV)/dev.stamp ## check types (mypy, strict)
	@$(BIN)/mypy

# The contracts of others are descriptor sets: as modules, they would collide with their makers' packages in one program.
# Rewrites one import prefix: the wire package is typeless.v1, the Python package typeless_grpc.pb.v1.
define generate
	@rm -rf $(1).tmp && mkdir -p $(1).tmp/out
	PATH=$(CURDIR)/$(PROTO_BIN):$$PATH $(PROTO_BIN)/python -m grpc_tools.protoc -Iprotos --python_out=$(1).tmp/out \
	  --grpc_python_out=$(1).tmp/out --mypy_out=$(1).tmp/out --mypy_grpc_out=$(1).tmp/out $(PROTOS) 2>$(1).tmp/log || { cat $(1).tmp/log >&2; exit 1; }
	find $(1).tmp/out -name '*.py*' -exec sed -i -E 's/^(from|import) typeless\./\1 typeless_grpc.pb./; s/\btypeless\.((engine\.)?v1\.[a-z]+_pb2)/typeless_grpc.pb.\1/g' {} +
	rm -rf $(1) && mv $(1).tmp/out/typeless $(1) && touch $(1)/__init__.py $(1)/v1/__init__.py $(1)/engine/__init__.py $(1)/engine/v1/__init__.py && rm -rf $(1).tmp
	$(PROTO_BIN)/python -m grpc_tools.protoc -Iprotos --include_imports --descriptor_set_out=$(1)/riva.binpb protos/riva/proto/riva_asr.proto
	$(PROTO_BIN)/python protos/google/descriptors.py >$(1)/google.binpb
endef

proto: $(PROTO_BIN)/protoc-gen-mypy ## generate typeless_grpc/pb from protos/
	$(call generate,typeless_grpc/pb)

golden: $(VENV)/dev.stamp ## generate docs/configuration.md, docs/metrics.md and the settings in the chart's schema
	@$(BIN)/typeless config --reference >docs/configuration.md
	@$(BIN)/python -m typeless_grpc.telemetry.reference >docs/metrics.md
	@schema=$$($(BIN)/python deploy/helm/settings_schema.py) && echo "$$schema" >deploy/helm/typeless/values.schema.json

verify: $(PROTO_BIN)/protoc-gen-mypy $(VENV)/dev.stamp ## check that generated code and docs are current, and that the contract only grew
	$(call generate,.cache/pb)
	diff -r -x __pycache__ .cache/pb typeless_grpc/pb || { echo "typeless_grpc/pb is out of date: make proto" >&2; exit 1; }
	$(BIN)/typeless config --reference | diff - docs/configuration.md || { echo "docs/configuration.md is out of date: make golden" >&2; exit 1; }
	$(BIN)/python deploy/helm/settings_schema.py | diff - deploy/helm/typeless/values.schema.json || { echo "values.schema.json is out of date: make golden" >&2; exit 1; }
	if [ -z "$(BASE)" ]; then echo "not a git checkout: skipping the comparison of the contract with its past"; exit 0; fi
	cd protos && ../$(BIN)/buf breaking --against '../.git#ref=$(BASE),subdir=protos'

floors: | $(UV) ## run the tests without models on the oldest supported dependencies
	@$(UV) venv -q --clear --python $(BIN)/python .venv-floor
	$(UV) pip install -q --python $(FLOOR_BIN)/python -r requirements/floor.lock
	$(UV) pip install -q --python $(FLOOR_BIN)/python --no-deps -e .
	$(FLOOR_BIN)/python -m pytest -q -m "not model and not recordings" tests/unit tests/service

bench: $(VENV)/dev.stamp ## measure speed, accuracy and resources beside faster-whisper (one hour)
	@$(BIN)/python -m benchmarks $(if $(MODEL),--model $(MODEL)) --recordings $(RECORDINGS)

audit: $(RELEASE_BIN)/cyclonedx-py ## compare the locked dependencies with known vulnerabilities; AUDIT=required fails without access
	@AUDIT=$(AUDIT) $(RELEASE_BIN)/python .ci/audit $(RELEASE_BIN)/pip-audit requirements/dev.lock requirements/release.lock

dist: $(RELEASE_BIN)/cyclonedx-py ## build wheel, sdist, SBOM (CycloneDX) and checksums in dist/
	@rm -rf dist && mkdir dist
	$(RELEASE_BIN)/python -m build --outdir dist . >dist/build.log || { cat dist/build.log >&2; exit 1; }
	rm dist/build.log
	wheel=$$(basename dist/*.whl) && version=$$(cut -d- -f2 <<<"$$wheel")
	$(UV) venv -q --clear --python $(BIN)/python .cache/sbom
	$(UV) pip install -q --python .cache/sbom/bin/python -r requirements/server.lock
	$(UV) pip install -q --python .cache/sbom/bin/python --no-deps dist/$$wheel
	sed "s/^dynamic = .*/version = \"$$version\"/" pyproject.toml >.cache/sbom/pyproject.toml
	$(RELEASE_BIN)/cyclonedx-py environment .cache/sbom/bin/python --pyproject .cache/sbom/pyproject.toml --mc-type application \
	  --short-PURLs --output-reproducible --validate --of JSON -o dist/typeless_grpc-$$version.cdx.json
	cd dist && sha256sum -- * >SHA256SUMS && cat SHA256SUMS

clean: ## remove the environments and caches, not the data directory
	@rm -rf dist .venv .venv-proto .venv-floor .venv-release .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
