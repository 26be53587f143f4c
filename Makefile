# Needs Python 3.11 or later, make and git; the rest is installed here, into .venv (and .uv, where there is no uv).
#   PYTHON=python3.13 make test    uses another interpreter than the first one on PATH
#   CI=true make test              is as strict as CI: make test-all, and no test skipped that needs Kafka, Docker, root, PostgreSQL or Chromium

export UV_PYTHON_DOWNLOADS ?= never
# Trust the certificates that this machine trusts, as pip does.
export UV_SYSTEM_CERTS ?= true

UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(UV) pip install --quiet --python $(VENV) --constraints constraints.txt --build-constraints constraints.txt
# The editable install links file by file, so a new or a deleted file, which its directory's date shows, needs another one.
PACKAGE := pyproject.toml constraints.txt $(shell find engine drivers projections -type d ! -name __pycache__)

# By file, for their fixtures. A process of the tests that dies ends the run: pytest-xdist would wait for its replacement for ever (#1378).
PARALLEL := --numprocesses auto --dist loadfile --max-worker-restart 0
# These try brokers, old and damaged ones: our event loop makes no difference to them.
OF_BROKERS := test_broker.py test_kafka_versions.py test_kafka_docker.py test_kafka_lost_end.py test_kafka_bytes.py

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all pure uvloop lint format docs bench property torture simulate worlds fuzz constraints clean

help: ## what there is
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile | expand -t 20

setup: $(VENV)/ready-dev ## install everything into .venv

demo: $(VENV)/ready ## a durable order, live: stepfold demo
	$(BIN)/stepfold demo

ifeq ($(CI),true)
test: test-all
else
test: $(VENV)/ready-dev ## the tests but the long ones, on a real Kafka: pytest -m "not slow"
	$(BIN)/pytest $(PARALLEL) -m "not slow"
endif

test-all: lint docs pure uvloop ## lint, types, documentation, coverage of the pure core, and all tests
	$(BIN)/pytest $(PARALLEL) --ignore tests/unit

pure: $(VENV)/ready-dev
	$(BIN)/pytest tests/unit --cov --quiet

uvloop: $(VENV)/ready-dev
	$(BIN)/pytest $(PARALLEL) --loop uvloop -m "not slow" tests/engine tests/drivers tests/cli/test_worker.py \
	  $(addprefix --ignore tests/drivers/, $(OF_BROKERS))

lint: $(VENV)/ready-dev ## ruff and pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(VENV)/ready-dev ## let ruff mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/ready-dev ## the API reference into build/docs; a warning is an error
	$(BIN)/python docs/reference.py build/docs

bench: $(VENV)/ready-dev ## figures next to the ceiling of this machine, or AGAINST=commit next to another engine
	$(BIN)/python tests/bench$(if $(AGAINST),/against.py $(AGAINST))

simulate: $(VENV)/ready-dev ## the engine in simulated worlds, MINUTES=1 of fresh ones, or SEED=n again; BUGS=1 plants bugs in it
	$(BIN)/python tests/simulation $(if $(BUGS),--bugs $(filter-out 1,$(BUGS)),$(if $(SEED),--seed $(SEED),--minutes $(or $(MINUTES),1)))

worlds: $(VENV)/ready-dev ## the first WORLDS=200 worlds: one hash of all, the same after a change that only moves code
	$(BIN)/python tests/simulation --worlds $(or $(WORLDS),200)

property: $(VENV)/ready-dev ## values of generated types through the engine, MINUTES=1 of fresh ones
	STEPFOLD_PROPERTY_MINUTES=$(or $(MINUTES),1) $(BIN)/pytest -o faulthandler_timeout=0 tests/values

fuzz: $(VENV)/ready-dev ## strange bytes for everything that reads what it did not write, MINUTES=1 of them, from SEED=0 on
	PYTHONPATH=tests $(BIN)/python tests/fuzz --minutes $(or $(MINUTES),1) --seed $(or $(SEED),0)

torture: $(VENV)/ready-dev ## workers die at random, MINUTES=10 on each log
	PYTHONPATH=tests $(BIN)/python tests/faults --minutes $(or $(MINUTES),10)

constraints: | $(UV) ## upgrade constraints.txt to the newest versions that pyproject.toml allows
	$(UV) pip compile --quiet --upgrade --universal --no-header --extra broker --extra metrics --extra otel --extra uvloop --extra web --group dev pyproject.toml -o constraints.txt

clean: ## remove what make has made
	rm -rf .venv .uv build dist *.egg-info .coverage .hypothesis .pytest_cache .ruff_cache

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/pip install --quiet --constraint constraints.txt uv

# One file per interpreter asked for: another PYTHON begins a new .venv.
PYTHON_CHOSEN := $(VENV)/python-$(subst /,-,$(PYTHON))
$(PYTHON_CHOSEN): | $(UV)
	$(UV) venv --quiet --clear $(if $(PYTHON),--python $(PYTHON)) $(VENV)
	@touch $@

$(VENV)/ready: $(PYTHON_CHOSEN) $(PACKAGE) | $(UV)
	rm -rf build
	$(INSTALL) --reinstall-package stepfold --editable .
	ln -s $$(basename build/__editable__.*) build/types # for pyright, which looks into nothing that is called __editable__
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(INSTALL) --editable '.[broker,metrics,otel,uvloop,web]' --group dev
	@touch $@
