# Everything a newcomer needs: `make serve` and `make test` do their own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := fastapi a2a langgraph
# Those that ARGS names, else all; none to read --help.
COMPARED = $(if $(findstring --help,$(ARGS)),,$(filter $(PEERS),$(or $(filter tasktrail $(PEERS),$(ARGS)),$(PEERS))))

.PHONY: help serve test check install lint types imports schemas bench bench-peers clean
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(INSTALLED) ## the virtual environment .venv, with the project in it (editable) and pinned dependencies

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Tasktrail needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

serve: $(INSTALLED) ## start everything, embedded; make serve ARGS="--port 9000" passes options on
	@exec $(BIN)/tasktrail serve $(ARGS)

test: $(INSTALLED) ## the whole suite on all cores; make test ARGS="-k tail" passes options on
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/basedpyright

imports: $(INSTALLED)
	$(BIN)/lint-imports

check: lint types imports ## what CI checks: format, lint, types, imports, then the tests
	$(MAKE) test

schemas: $(INSTALLED) ## write docs/reference/asyncapi.json and facts.schema.json anew, from the facts
	$(BIN)/tasktrail schemas --output docs/reference

bench: $(INSTALLED) ## every figure beside its bare limit; make bench ARGS="polls audit --records 100000" chooses
	@$(BIN)/python -m tests.bench $(ARGS)

bench-peers: $(INSTALLED) ## the same work on what people use instead, each in an environment of its own
	@for peer in $(COMPARED); do $(MAKE) --silent --no-print-directory .peers/$$peer/.installed || true; done
	@$(BIN)/python -m tests.bench.peers $(ARGS)

# One that can't be made is missing from the comparison, which says so.
.peers/%/.installed: tests/bench/peers/%.txt
	$(PYTHON) -m venv --clear .peers/$*
	.peers/$*/bin/python -m pip install --quiet --disable-pip-version-check --requirement $< || { rm -rf .peers/$*; exit 1; }
	@touch $@

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .peers .pytest_cache .ruff_cache .import_linter_cache *.egg-info
