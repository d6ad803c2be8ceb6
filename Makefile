# SPDX-License-Identifier: Apache-2.0
# The habits: make demo, make test, make lint, make bench, make fuzz N=2000,
# make chaos MINUTES=5 SEED=2, make leak N=1000.

PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP_INSTALL := $(BIN)/python -m pip install --quiet
TEMPLATES := bpfilter/_templates
C_SOURCES := $(wildcard bpf_templates/*.[ch] bench/*.[ch] tests/*/*.[ch])

# Property tests and packets per ruleset of `make fuzz`; the seed makes a run repeatable.
N ?= 200
PACKETS ?= 200
SEED ?= 1
# Packets of `make soak`.
SOAK ?= 1000000
# Minutes of random acts per world of `make chaos`; the deaths at every point come on top.
MINUTES ?= 2
# Further arguments: make test ARGS='-k parser', make bench ARGS=--quick
ARGS ?=

.PHONY: help setup system templates demo test lint format bench fuzz soak chaos edits leak
.PHONY: guests boots man deb package-test wheel lock clean

help:
	@echo 'make setup      system packages (as root), .venv, BPF templates; quick when done'
	@echo 'make demo       the whole product in network namespaces, as root'
	@echo 'make test       all tests; those that need the kernel run as root only'
	@echo 'make lint       ruff, mypy, import contracts, clang-format'
	@echo 'make format     ruff and clang-format write'
	@echo 'make bench      measures all of it beside iptables, nftables and ipset'
	@echo 'make fuzz N=200 random rulesets, kernel against program, packet by packet'
	@echo 'make soak       a million packets of mixed traffic in shadow, each compared'
	@echo 'make chaos      every packet accounted while all kinds of things happen, as root'
	@echo 'make edits N=250 foreign edits while enforcing: whose verdict, how soon, per backend'
	@echo 'make leak N=500 cycles up and down per backend: nothing may stay, nothing may grow'
	@echo 'make guests     other kernels under QEMU: tests of what this one lacks; minutes'
	@echo 'make boots      the package in a Debian booted with systemd under QEMU; half an hour'
	@echo 'make templates  compiles bpf_templates/ into $(TEMPLATES)/'
	@echo 'make man        man pages and shell completions into build/share/'
	@echo 'make deb        dist/bpfilter_*.deb for Debian 12'
	@echo 'make package-test  the package in a minimal Debian: install, upgrade, remove, purge; as root'
	@echo 'make wheel      dist/bpfilter-*.whl with the compiled templates'
	@echo 'make lock       writes requirements.lock anew'

setup: $(STAMPS)/system $(STAMPS)/package templates

system $(STAMPS)/system: scripts/system-packages
	@scripts/system-packages
	@mkdir -p $(STAMPS)
	@touch $(STAMPS)/system

$(STAMPS)/locked: requirements.lock | $(STAMPS)/system
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@sed -n '/^setuptools==/,/[^\\]$$/p' requirements.lock > $(STAMPS)/setuptools.lock
	$(PIP_INSTALL) --require-hashes --requirement $(STAMPS)/setuptools.lock
	$(PIP_INSTALL) --require-hashes --use-pep517 --no-build-isolation \
		--requirement requirements.lock
	@touch $@

$(STAMPS)/package: pyproject.toml $(STAMPS)/locked
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

# bpf_templates/Makefile knows what is out of date.
templates: | $(STAMPS)/system
	@$(MAKE) --no-print-directory -C bpf_templates

demo: setup
	$(BIN)/bpfilter demo $(ARGS)

test: setup
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup $(ARGS)

lint: $(STAMPS)/package
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache > $(STAMPS)/imports.log 2>&1 \
		|| { cat $(STAMPS)/imports.log; exit 1; }
	clang-format --dry-run --Werror $(C_SOURCES)

format: $(STAMPS)/package
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .
	clang-format -i $(C_SOURCES)

bench: setup
	$(BIN)/python -m bench $(ARGS)

fuzz: setup
	$(BIN)/python -m bpfilter.cli.fuzz --rulesets $(N) --packets $(PACKETS) --seed $(SEED) $(ARGS)

soak: setup
	$(BIN)/python -m tests.soak.soak --packets $(SOAK) $(ARGS)

chaos: setup
	$(BIN)/python -m tests.chaos run --minutes $(MINUTES) --seed $(SEED) $(ARGS)

edits: setup
	$(BIN)/python -m tests.chaos edits --count $(N) --seed $(SEED) $(ARGS)

leak: setup
	$(BIN)/python -m tests.chaos leak --cycles $(N) $(ARGS)

guests: setup
	@$(BIN)/python -m tests.guest $(ARGS)

# Each class of tests boots one machine: ARGS='-k Outlives', Hangs, Comes, Legacy or Lacks.
boots: deb
	@$(BIN)/python -m pytest -p no:cacheprovider -v tests/package/booted.py $(ARGS)

# Under build/share as they belong under /usr/share; the wheel and the package install them.
man: setup
	$(BIN)/python scripts/man_pages.py build/share

deb: setup man
	@scripts/package

package-test: deb
	@$(BIN)/python -m pytest -p no:cacheprovider tests/package/installing.py $(ARGS)

wheel: setup man
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

lock:
	PYTHON=$(PYTHON) scripts/lock $(ARGS)
	@rm -f $(STAMPS)/locked

clean:
	rm -rf build dist $(TEMPLATES) *.egg-info
