# Signalbox. `make help` lists the targets; README.md says which two a newcomer needs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
BIN := .venv/bin
MANIFESTS ?=
DATA ?= data
PORT ?= 8080
FORMAT ?=
OUT ?= build/images
SEED ?= 1
SECONDS ?= 60
BEGAN := $(shell date +%s)
# Tests that are slow as whole files are not even read: importing the SDKs takes seconds.
SLOW_FILES := --ignore tests/e2e --ignore tests/k8s --ignore tests/simulator/tests/test_simulator_sdk.py
# Some environments forbid it; then every process compiles what it imports, and every test file is rewritten anew.
export PYTHONDONTWRITEBYTECODE :=
# Where set-up unpacks what tests need of Debian and the machine lacks.
export PATH := $(PATH):$(CURDIR)/tests/clients/debian/usr/bin

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install everything into .venv
	@scripts/setup.sh

.PHONY: run
run: setup ## serve: MANIFESTS=DIR [DATA=data] [PORT=8080]; without documents, the demo on a simulated provider
	@exec $(if $(MANIFESTS),$(BIN)/signalbox up --manifests $(MANIFESTS) --data $(DATA) --port $(PORT),$(BIN)/signalbox demo --port $(PORT))

# Whatever a machine lacks and however busy it is, this ends within 40 minutes: what must be built ends in time for the tests
# that need it, or they are skipped; tests/cluster/clock.py has the limits of the last step.
.PHONY: test
test: export SIGNALBOX_BUILD_BY := $(shell expr $(BEGAN) + 1920)
test: setup-tests check tools ## install everything and run every test; those of a cluster in short, where there can be a node
	@scripts/tests.sh -m "not k8s and not scale"
	@$(MAKE) -s test-k8s
	@exec $(BIN)/python -m tests.cluster --ci-began $(BEGAN)
	@echo "test: all of it took $$(( ($$(date +%s) - $(BEGAN)) / 60 )) minutes"

.PHONY: tools
tools: setup ## build helm and kubeconform, which the chart's tests need, where they are missing; once
	@{ command -v helm && command -v kubeconform; } >/dev/null || $(BIN)/python scripts/k8s/assets.py tools >/dev/null || echo "tools: tests of the chart will be skipped" >&2

.PHONY: test-k8s
test-k8s: setup tools ## the operator's tests against a Kubernetes control plane, built once if need be; no containers, no root
	@$(BIN)/python scripts/k8s/assets.py >/dev/null || test $$? = 3
	@WORKERS=$${WORKERS:-2} exec scripts/tests.sh -rs -m "k8s and not scale" tests/k8s

.PHONY: test-scale
test-scale: setup ## the operator with a thousand accounts and ten thousand keys: seconds and megabytes
	@exec $(BIN)/pytest -q -s -m scale tests/k8s

.PHONY: test-fast
test-fast: setup ## the fast tests (at most a minute)
	@exec $(BIN)/pytest -q -n 4 --dist loadfile --no-loadscope-reorder --hypothesis-profile=fast -m "not slow and not k8s and not scale" $(SLOW_FILES)

.PHONY: setup-tests
setup-tests:
	@scripts/setup.sh clients

.PHONY: check
check: setup ## style, types, layers, drift of generated files
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python scripts/gen_stubs.py --check
	@$(BIN)/python scripts/gen_docs.py --check
	@$(BIN)/python scripts/gen_crds.py --check
	@$(BIN)/python scripts/gen_chart.py --check
	@$(BIN)/python scripts/gen_image_lock.py --check

.PHONY: stubs
stubs: setup ## generate the gRPC stubs from proto/
	@$(BIN)/python scripts/gen_stubs.py

.PHONY: docs
docs: setup ## generate the reference pages of docs/, and what the chart and the images carry
	@$(BIN)/python scripts/gen_docs.py
	@$(BIN)/python scripts/gen_chart.py
	@$(BIN)/python scripts/gen_image_lock.py

.PHONY: crds
crds: setup ## generate the CustomResourceDefinitions in deploy/crds, and the chart's copy
	@$(BIN)/python scripts/gen_crds.py
	@$(BIN)/python scripts/gen_chart.py

.PHONY: lock
lock: setup ## pin the dependencies anew, with hashes
	@$(BIN)/uv lock --upgrade --quiet
	@$(BIN)/uv export --quiet --no-emit-workspace --all-packages --all-groups --no-header --no-annotate -o requirements.lock >/dev/null

.PHONY: test-cluster
test-cluster: setup tools ## every test of a release on a real node, from nothing (root): or on KUBECONFIG=FILE [LOAD="kind load image-archive"] [OUT=build/images]
	@exec $(BIN)/python -m tests.cluster --kubeconfig "$(KUBECONFIG)" --load "$(LOAD)" --images $(OUT) $(ARGS)

.PHONY: images
images: ## OCI archives of the chart's images, with docker, podman, buildah or none of them: OUT=DIR
	@deploy/images/build.sh $(OUT)

.PHONY: pictures
pictures: setup ## the dashboards' pictures in docs/ (six minutes; needs Chromium, Prometheus, pngquant)
	@exec $(BIN)/python -m tests.deploy.pictures

.PHONY: bench
bench: setup ## CPU per request, latency and memory beside a peer (needs a C compiler); ARGS="--only closed --seconds 5"
	@$(MAKE) -s -C bench
	@exec $(BIN)/python bench/measure.py $(ARGS)

.PHONY: chaos
chaos: setup ## break everything under load, then compare: SEED=1[,2,…] SECONDS=60
	@exec $(BIN)/python -m tests.chaos --seed $(SEED) --seconds $(SECONDS)

.PHONY: clean
clean: ## remove what set-up, tests and benchmarks made
	@rm -rf .venv tests/clients/node_modules tests/clients/debian .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@$(MAKE) -s -C bench clean
