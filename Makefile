# What the README names, runnable in a fresh clone with nothing but Python 3.10 to 3.13 and make.
#
# Environments are virtual, in the clone, and made on first use; delete them with `make clean`. The servers have one of
# their own: ministack pins botocore exactly, and must not decide the library's versions.

PYTHON ?= python3
OLDEST_PYTHON ?= $(PYTHON)

VENV := .venv
OLDEST_VENV := .venv-oldest
SERVERS_VENV := .venv-servers
SOURCES := $(wildcard ckpt_remote tests benchmarks docs)

AZURITE := $(SERVERS_VENV)/node_modules/.bin/azurite-blob
AZURITE_VERSION := 3.33.0  # newer ones need node 22

# An empty file in an environment says what was installed there, and when.
DEMO_READY := $(VENV)/ready-demo
TEST_READY := $(VENV)/ready-test
OLDEST_READY := $(OLDEST_VENV)/ready
SERVERS_READY := $(SERVERS_VENV)/ready

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-fast test-oldest soak azurite lint bench docs servers clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DEMO_READY) $(SERVERS_READY) ## Train, kill, resume from an S3 server on this machine (half a minute)
	@$(VENV)/bin/python docs/demo/run.py

test: lint $(SERVERS_READY) azurite ## Lint, check types, and run every test
	@echo "Running every test, the demo included."
	@$(VENV)/bin/python -m pytest

test-fast: $(TEST_READY) $(SERVERS_READY) azurite ## Run the tests that are not marked slow
	@$(VENV)/bin/python -m pytest -m "not slow"

test-oldest: $(OLDEST_READY) $(SERVERS_READY) ## Run every test on TensorFlow 2.16, the oldest supported (Python 3.10 to 3.12)
	@echo "Running every test on TensorFlow 2.16."
	@$(OLDEST_VENV)/bin/python -m pytest

# The proofs of `make test`, at full length: schedules, kills of a real process, every test's figures shown.
SOAK := tests/test_schedules.py tests/test_crews.py tests/test_every_fault.py tests/test_processes.py tests/test_contention.py \
	tests/test_integrity.py tests/test_budgets.py
soak: $(TEST_READY) $(SERVERS_READY) ## Prove the protocol at length: 100,000 schedules, 200 kills (half an hour)
	@CKPT_REMOTE_SCHEDULES=100000 CKPT_REMOTE_KILLS=200 CKPT_REMOTE_STOPS=50 CKPT_REMOTE_FAULTS=all $(VENV)/bin/python -m pytest $(SOAK)

lint: $(TEST_READY) ## Check style (ruff), format (ruff) and types (mypy, strict)
	@echo "Checking style, format and types."
	@$(VENV)/bin/ruff check $(SOURCES)
	@$(VENV)/bin/ruff format --check $(SOURCES)
	@$(VENV)/bin/mypy

bench: $(TEST_READY) $(SERVERS_READY) ## Run the benchmarks
	@for script in $(filter-out benchmarks/report.py benchmarks/sink.py,$(wildcard benchmarks/*.py)); do echo "Running $$script."; $(VENV)/bin/python "$$script" || exit 1; done

docs: $(TEST_READY) $(SERVERS_READY) ## Check the documents: links lead somewhere, the README's Python runs (there is no site yet)
	@$(VENV)/bin/python -m pytest tests/test_docs.py

azurite: ## Install Azure's emulator, if there is npm (half a minute)
	@if test -x $(AZURITE); then :; \
	elif ! command -v npm >/dev/null; then echo "There is no npm: the tests against Azure's emulator are skipped."; \
	else echo "Installing Azure's emulator into $(SERVERS_VENV), once: half a minute."; \
		npm install --silent --no-audit --no-fund --fetch-retries=0 --prefix $(SERVERS_VENV) azurite@$(AZURITE_VERSION) \
		|| echo "It could not be installed: the tests against it are skipped."; \
	fi

servers: $(SERVERS_READY) ## Install the servers that demo and tests run against

clean: ## Remove environments, caches and build output
	rm -rf $(VENV) $(OLDEST_VENV) $(SERVERS_VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call environment,PYTHON,FOLDER,NEWEST MINOR VERSION): an environment, made once, by a Python that is supported.
define environment
@$(1) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, $(3)) else \
	"This needs Python 3.10 to 3.$(3), and $(1) is %d.%d. Name another: make PYTHON=/path/to/python3.$(3) ..." % v)'
@test -x $(2)/bin/pip || { echo "Making the environment $(2)."; $(1) -m venv $(2); }
endef

$(DEMO_READY): pyproject.toml
	$(call environment,$(PYTHON),$(VENV),13)
	@echo "Installing the library, TensorFlow for the CPU and scikit-learn into $(VENV), once: a minute or a few."
	@$(VENV)/bin/python -m pip install --quiet --editable '.[tensorflow-cpu]' scikit-learn
	@touch $@

$(TEST_READY): pyproject.toml
	$(call environment,$(PYTHON),$(VENV),13)
	@echo "Installing the library, TensorFlow for the CPU, test and lint tools into $(VENV), once: a minute or a few."
	@$(VENV)/bin/python -m pip install --quiet --editable '.[tensorflow-cpu,test,lint]'
	@touch $@ $(DEMO_READY)

$(OLDEST_READY): pyproject.toml
	$(call environment,$(OLDEST_PYTHON),$(OLDEST_VENV),12)
	@echo "Installing the library and TensorFlow 2.16 into $(OLDEST_VENV), once: a minute or a few."
	@$(OLDEST_VENV)/bin/python -m pip install --quiet --editable '.[test]' 'tensorflow-cpu==2.16.*' 'numpy<2'
	@touch $@

$(SERVERS_READY): tests/support/servers.txt
	$(call environment,$(PYTHON),$(SERVERS_VENV),13)
	@echo "Installing the servers into $(SERVERS_VENV), once: a minute."
	@$(SERVERS_VENV)/bin/python -m pip install --quiet --requirement $<
	@touch $@
