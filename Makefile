# Every verb builds what it needs in .venv on its first run; a later run starts at once.
# Needed on the machine: make and Python 3.11 or later. Another interpreter: make VERB PYTHON=/path/to/python3.13

PYTHON ?= python3
BIN := .venv/bin

# One .venv, filled in two steps so that the first look costs half the wait (docs/decisions.md, 2): what runs the
# service and the rehearsal, and what develops them. The second holds all of the first.
DEV := .venv/.installed-dev
RUN := $(if $(wildcard $(DEV)),$(DEV),.venv/.installed-run)

# Tests run in a process for each core and one more, since some wait; a file's tests stay together, since they may share
# a service.
PROCESSES = -n $(shell cores=$$(nproc); echo $$((cores < 4 ? cores + 1 : 4))) --dist loadfile

# Whole stories, notebooks and long random histories are judged by how they end: tracing their lines more than doubles
# their time. What only they reach counts as not covered.
UNTRACED := tests/scenarios tests/property $(addsuffix .py,$(addprefix tests/sim/test_,cluster deployment determinism \
	metastability notebooks pictures populations shrink theory))

PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: browser help demo serve test check bench lab chaos load nightly format pictures conformance fidelity mutants constraints clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(RUN) ## rehearse a provider brownout in virtual time, then hold a real conversation; writes report.html
	@$(BIN)/orchestra demo

serve: $(RUN) ## run the service with its own private PostgreSQL and Redis (or REDIS_URL and DATABASE_URL)
	@$(BIN)/orchestra serve

test: $(DEV) browser ## run all tests and measure coverage of orchestra and sim; fails under 90 %
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PROCESSES) $(addprefix --ignore=,$(UNTRACED))
	$(BIN)/pytest $(PROCESSES) $(UNTRACED)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: $(DEV) ## lint, formatting, types and the house rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_tidy.py

bench: $(DEV) rivals ## measure; one JSON object a line: name, value, unit, against
	@$(BIN)/python -m tests.benchmarks

lab: $(DEV) ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --allow-root --ServerApp.root_dir=notebooks

chaos: $(RUN) ## rehearse every scenario in chaos/scenarios; the exit code is that of the last one that did not pass
	@status=0; \
	for scenario in chaos/scenarios/*.yaml; do \
		$(BIN)/orchestra sim run "$$scenario" || status=$$?; \
	done; \
	exit $$status

load: $(DEV) ## start the service, run Locust against it for 20 s, stop it; the exit code is gated on failures and p95
	@$(BIN)/python -m chaos.processes $(BIN)/locust -f loadtests/locustfile.py --headless --only-summary --stop-timeout 5 \
		--users 10 --spawn-rate 10 --run-time 20s --host {url} $(LOAD)

nightly: $(DEV) browser ## the tests that take longer than a pull request should wait for, and runs of a million turns
	HYPOTHESIS_PROFILE=nightly $(BIN)/pytest --timeout 0 tests/property
	$(BIN)/pytest --timeout 0 -m nightly
	BENCH_TURNS_MAX=1000000 $(BIN)/python -m tests.benchmarks sim

format: $(DEV) ## format the code and mend what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pictures: $(DEV) browser ## render the pictures in docs/pictures anew, from their scenarios and the page
	$(BIN)/python -m sim.pictures timeline chaos/scenarios/provider_brownout.yaml docs/pictures/brownout.png
	$(BIN)/python -m sim.pictures metastability chaos/scenarios/retry_storm.yaml docs/pictures/metastability.png
	$(BIN)/python -m sim.pictures heat chaos/scenarios/gray_provider.yaml docs/pictures/heat.png
	$(BIN)/python -m sim.pictures load notebooks/stories/capacity.yaml docs/pictures/load.png
	$(BIN)/python -m sim.pictures pareto notebooks/stories/brownout.yaml docs/pictures/pareto.png
	$(BIN)/python -m sim.pictures comparison notebooks/stories/brownout.yaml docs/pictures/comparison.png
	$(BIN)/python -m sim.pictures fits notebooks/stories/production.yaml docs/pictures/fits.png
	$(BIN)/python -m tests.browser.pictures

conformance: $(DEV) ## probe our circuit breaker and five others, and write the table of docs/conformance.md anew
	$(BIN)/python -m tests.conformance.table > docs/conformance.new
	mv docs/conformance.new docs/conformance.md

fidelity: $(DEV) ## live through queues that theory has solved, and write the table of docs/fidelity.md anew
	$(BIN)/python -m tests.sim.theory > docs/fidelity.new
	mv docs/fidelity.new docs/fidelity.md

mutants: $(DEV) ## change orchestra/resilience in small ways: do its tests notice 90 %? One file: make mutants FILE=bulkhead
	rm -rf mutants
	$(BIN)/mutmut run $(if $(FILE),'orchestra.resilience.$(FILE).*')
	@$(BIN)/mutmut results --all true | awk -F ': ' "$$MUTANTS_BY_FILE"

# Prints who survived, then each file's share. "not checked" are the files that were not asked for; a mutant that never
# ends is noticed, too.
export define MUTANTS_BY_FILE
NF == 2 && $$2 != "not checked" {
	split($$1, name, "."); file = name[3]
	if (!all[file]++) files[++count] = file
	if ($$2 == "killed" || $$2 == "timeout") killed[file]++; else print
}
END {
	for (i = 1; i <= count; i++) {
		file = files[i]; share = 100 * killed[file] / all[file]
		printf "%-12s %4d of %4d killed, %5.1f %%\n", file, killed[file], all[file], share
		if (share < 90) low = 1
	}
	exit low || !count
}
endef

constraints: ## pin the newest versions that pyproject.toml allows, as a fresh environment resolves them
	@$(call require_python)
	rm -rf .venv-constraints
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip --disable-pip-version-check install --quiet -e '.[dev]'
	{ echo "# What CI and a fresh clone install; written by 'make constraints'. Versions only."; \
	  .venv-constraints/bin/python -m pip freeze --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' ; } > constraints.new
	mv constraints.new constraints.txt
	rm -rf .venv-constraints

clean: ## remove what runs and builds leave behind, .venv too
	rm -rf .venv .venv-constraints .venv-rivals .orchestra .coverage .coverage.* htmlcov report.html build dist mutants
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis notebooks/.ipynb_checkpoints
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an install that was cut off is done again; a .venv whose pip does not answer (cut off
# while it was made, or its interpreter is gone) is made anew.
.venv/.installed-run: EXTRAS := embedded,simulation
$(DEV): EXTRAS := dev
.venv/.installed-run $(DEV): pyproject.toml constraints.txt
	@$(call require_python)
	@rm -f $@
	@echo 'Setting up .venv for this ($(EXTRAS)): once, a minute or so ...' >&2
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(PIP) install -qq --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

# The browser that the page is tested in is the system's: where it is missing and root may, Debian's is installed.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium \
		>/dev/null; } || echo 'No chromium here: the tests of the page in a browser are left out.' >&2

# The simulated loop's rivals need Python 3.12: PYTHON312, or the first of these that is one, in a small environment of its
# own. Without any, `make bench` says so and leaves them out.
RIVALS := tests/benchmarks/rivals.txt

.PHONY: rivals
rivals:
	@[ .venv-rivals/.installed -nt $(RIVALS) ] || \
	for python in $(PYTHON312) python3.13 python3.12 python3 $(PYTHON); do \
		$$python -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null || continue; \
		$$python -m venv --clear .venv-rivals && \
		.venv-rivals/bin/python -m pip --disable-pip-version-check install -qq --requirement $(RIVALS) && \
		touch .venv-rivals/.installed; break; \
	done

define require_python
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "Python 3.11 or later is needed, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1)." >&2; \
	echo "Install one, or name one: make $(or $(firstword $(MAKECMDGOALS)),help) PYTHON=/path/to/python3.11" >&2; \
	exit 1; }
endef
