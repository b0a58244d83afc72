# VisionA Cloud. `make` alone lists what there is. Needed beforehand: Python 3.11 to 3.14, and make.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:

PY := .venv/bin/python
# The Python to make .venv with, as in PYTHON=/path/to/python3; else the newest supported one that .ci/python finds.
PYTHON ?=
INSTALL = @python="$(PYTHON)"; [ -n "$$python" ] || python=$$(.ci/python) || exit 1; \
	"$$python" -m cloud.supervisor.install
# How the tests are spread: one PostgreSQL and one Valkey for all, a database each. More than the two cores that CI has,
# since tests of real processes wait for most of their time. Files keep the order that tests/conftest.py gives them.
PYTEST_JOBS ?= 4
PYTEST_ARGS ?=
# What failed is kept here, for `.ci/again.py`.
SUITE := .pytest_cache/suite
# Which migrations `migrate-down` goes back to, as `make migrate-down TO="devices zero"`.
TO ?=

##@ The two commands
.PHONY: dev
dev: ## Start everything: databases, API, tunnel, worker and a demo box. Ctrl-C stops it
	$(INSTALL) local
	@exec $(PY) -m cloud.supervisor

.PHONY: test
test: ## Run the tests, on ports and data of their own
	$(INSTALL) dev
	@.ci/tools
	@rm -rf $(SUITE)
	$(PY) -m pytest -n $(PYTEST_JOBS) --dist loadfile --no-loadscope-reorder -m "not nightly" --cov --cov-report=term \
		-o cache_dir=$(SUITE) $(PYTEST_ARGS) || $(PY) .ci/again.py $(SUITE) $$?

##@ Working on it
.PHONY: lint
lint: ## Format, style, types, layers, migrations
	$(INSTALL) dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports
	$(PY) manage.py makemigrations --check --dry-run
	$(PY) manage.py lintmigrations --settings cloud.settings_lint --quiet ignore ok

.PHONY: format
format: ## Put the code into shape
	$(INSTALL) dev
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

.PHONY: messages
messages: ## Bring the catalogue of Traditional Chinese messages up to the source, and compile it
	$(INSTALL) dev
	$(PY) .ci/messages.py

.PHONY: contract
contract: ## Try the schema against the live server on both storages, at length
	$(INSTALL) dev
	CONTRACT_EXAMPLES=20 $(PY) -m pytest tests/system/test_contract.py

.PHONY: install
install: ## Make .venv with everything a developer needs
	$(INSTALL) dev

.PHONY: lock
lock: ## Lock requirements/*.in into hashed *.txt, all of one version each
	$(INSTALL) dev
	@for name in dev local api tunnel compile; do \
		constraint=""; [ $$name = dev ] || constraint="-c requirements/dev.txt"; \
		.venv/bin/uv pip compile -q --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
			--custom-compile-command "make lock" requirements/$$name.in $$constraint -o requirements/$$name.txt || exit 1; \
	done
	@grep -E '^[a-z0-9._-]+==' requirements/dev.txt | grep -v '^django==' | sed 's/ .*//' >var/dev-pins.txt
	.venv/bin/uv pip compile -q --universal --generate-hashes --no-emit-index-url --python-version 3.12 \
		--custom-compile-command "make lock" requirements/dev.in --override requirements/next.in -c var/dev-pins.txt \
		--no-annotate -o requirements/next.txt

# Strict: a package that could not be looked up is not taken for a safe one.
.PHONY: audit
audit: ## Look for known vulnerabilities in what is locked
	$(INSTALL) dev
	.venv/bin/pip-audit --strict --require-hashes --disable-pip -r requirements/dev.txt

.PHONY: bench
bench: ## Measure, side by side with peers
	$(INSTALL) dev
	$(PY) -m benchmarks

##@ The database
.PHONY: migrate migrate-up
migrate migrate-up: ## Bring the schema up to date
	$(INSTALL) local
	$(PY) manage.py migrate

.PHONY: migrate-down
migrate-down: ## Go back: make migrate-down TO="devices 0001" (or "devices zero")
	$(INSTALL) local
	@test -n "$(TO)" || { echo 'visiona: say where to, as in: make migrate-down TO="devices zero"'; exit 1; }
	$(PY) manage.py migrate $(TO)

.PHONY: migrate-version
migrate-version: ## Show which migrations are applied
	$(INSTALL) local
	$(PY) manage.py showmigrations

.PHONY: seed
seed: ## Put the demo user, device and pairing there (again: nothing changes)
	$(INSTALL) local
	$(PY) manage.py seed

##@ Parts of the tests
.PHONY: test-race
test-race: ## The suite three times under Python's development mode, in random order
	$(INSTALL) dev
	@for round in 1 2 3; do echo "round $$round"; \
		$(PY) -X dev -m pytest -n $(PYTEST_JOBS) --dist loadfile --no-loadscope-reorder -m "not browser and not nightly" \
			$(PYTEST_ARGS) || exit 1; done

.PHONY: nightly
nightly: ## The tests that `make test` leaves out: a minute and more each
	$(INSTALL) dev
	@.ci/tools
	$(PY) -m pytest -n0 -m nightly -v $(PYTEST_ARGS)

.PHONY: gameday
gameday: ## Mistakes, floods and failing parts, one after another, on the real system
	$(INSTALL) dev
	@.ci/tools
	$(PY) -m pytest -n0 -m gameday -v $(PYTEST_ARGS)

.PHONY: test-db
test-db: ## The tests of tables, constraints and services alone
	$(INSTALL) dev
	$(PY) -m pytest tests/apps $(PYTEST_ARGS)

# The admin's look overrides get_action_choices() in a way that the next Django warns of: theirs to mend.
.PHONY: test-next
test-next: ## The tests of the apps on the next Django, in an environment of its own (Python 3.12 or newer)
	@python="$(PYTHON)"; [ -n "$$python" ] || python=$$(.ci/python); \
		VENV=.venv-next "$$python" -m cloud.supervisor.install next
	.venv-next/bin/python -m pytest -n $(PYTEST_JOBS) --dist loadfile tests/apps tests/deploy \
		-W "ignore:Overriding get_action_choices:django.utils.deprecation.RemovedInDjango2028Warning" $(PYTEST_ARGS)

.PHONY: test-compiled
test-compiled: ## The tests of the tunnel on the copy with its compiled core, random sequences and fuzz included
	$(INSTALL) dev
	$(PY) deploy/compile.py build/compiled
	PYTHONSAFEPATH=1 PYTHONPATH=build/compiled:. $(PY) -m pytest -o pythonpath= -o django_find_project=false \
		tests/protocol tests/http tests/runtime $(PYTEST_ARGS)

##@ Containers
COMPOSE = @docker compose version >/dev/null 2>&1 || { echo "visiona: Docker with its Compose plugin is needed"; exit 1; }
.PHONY: docker-compose-up docker-compose-down docker-compose-logs
docker-compose-up: ## Build and start everything in containers
	$(COMPOSE)
	@test -f .env || cp .env.example .env
	docker compose up --build --detach --wait

docker-compose-down: ## Stop the containers; the volumes stay
	$(COMPOSE)
	docker compose down

docker-compose-logs: ## Follow what they write
	$(COMPOSE)
	docker compose logs --follow --tail 100

.PHONY: build
build: ## Build the agent's wheel into dist/
	$(INSTALL) dev
	$(PY) -m build --wheel --outdir dist

.PHONY: compiled
compiled: ## Compile the tunnel's core into build/compiled (used by `make bench`; the source tree stays as it is)
	$(INSTALL) dev
	$(PY) deploy/compile.py build/compiled

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z][a-z -]*:.*## / {split($$1, names, " "); printf "  make %-22s %s\n", names[length(names)], $$2}' $(MAKEFILE_LIST)
