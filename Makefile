# `make help` lists what there is. Everything runs in .venv, which the first target that needs it creates.
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOG := $(VENV)/install.log
INPUT ?=
OUTPUT ?= demo
ARGS ?=

# Runs pip quietly: a line now and then, the rest in the log, whose end is shown if something fails.
define pip_install
@set -o pipefail; $(BIN)/python -m pip install --constraint constraints.txt $(1) 2>&1 | tee -a $(LOG) | awk ' \
	/^(Collecting|Processing) / && ++n % 50 == 0 { print "  " n " packages found"; fflush() } \
	/^Installing collected packages/ { print "  installing " gsub(",", ",") + 1 " packages"; fflush() }' \
	|| { grep -v '^WARNING' $(LOG) | tail -n 15; echo "Installation failed; the whole log is $(LOG)."; exit 1; }
endef

.PHONY: help demo test lint docs bench bench-quick clean distclean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20
	@echo "Environment: $(VENV), made with PYTHON=$(PYTHON) (3.11 or newer)."

demo: $(VENV)/.installed ## complete a simulated tissue, or your own file with INPUT=path.h5ad, into demo/; ARGS="--help" lists options
	@$(BIN)/python -m lgdist_scvi.demo --output "$(OUTPUT)" $(if $(INPUT),--input "$(INPUT)") $(ARGS)

test: $(VENV)/.installed ## run the tests, in two processes; ARGS="-k pattern" is handed to pytest, ARGS="-n 0" keeps to one
	@# one thread each: the tests' small matrix products gain nothing from more; files stay whole, for their fixtures
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} MPLBACKEND=agg $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/.installed-dev ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

docs: $(VENV)/.installed-docs ## build the documentation into docs/_build/html, without network
	DOCS_OFFLINE=1 $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

bench: $(VENV)/.installed ## score all methods on hidden counts of all slides in ../shared/data (about half a day on two cores); goes on where it stopped
	$(BIN)/python -m benchmarks run $(ARGS)

bench-quick: $(VENV)/.installed ## LGDiST and two others on one small slide, in minutes; ARGS="--help" lists the options of both
	$(BIN)/python -m benchmarks run --quick $(ARGS)

clean: ## remove results, builds and caches; keep .venv
	rm -rf demo docs/_build docs/generated docs/tutorials build dist .pytest_cache .ruff_cache .hypothesis
	find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv too
	rm -rf $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "lgdist-scvi needs Python 3.11 or newer, and '$(PYTHON)' is not ($$($(PYTHON) --version 2>&1 | tail -n 1));" \
			"run 'make $(MAKECMDGOALS) PYTHON=/path/to/python3.11'."; exit 1; }
	@test -x $(BIN)/pip || { echo "Creating $(VENV) (a few minutes the first time)"; \
		$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }; }
	@echo "Installing lgdist-scvi and its dependencies (log: $(LOG))"; : > $(LOG)
	@# dependency groups need pip 25.1
	@$(BIN)/python -m pip install --quiet "pip>=25.1" >> $(LOG) 2>&1 || { tail -n 5 $(LOG); exit 1; }
	$(call pip_install,--editable . --group test)
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	@echo "Installing what '$*' needs"
	$(call pip_install,--group $*)
	@touch $@
