# Every way to build, run and check greenletio. ARGS= is handed on to the program that is run,
# PYTHON= names the interpreter that .venv is made with.

BOOTSTRAP = scripts/bootstrap.sh
RUN = .venv/bin
PYTEST = $(RUN)/pytest
C_FILES = $(wildcard csrc/*/*.c csrc/*/*.h benchmarks/*.c)

ifdef PYTHON
export PYTHON
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-all test-asyncio test-stdlib test-asyncpg test-pythons test-libpq test-sqlalchemy test-django build asan fuzz leaks soak lint types fmt bench bench-core bench-loop bench-green bench-pg bench-columns bench-apps docs wheel cluster clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' $(MAKEFILE_LIST) | column -t -s @ 2>/dev/null \
	  || sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1: \2/p' $(MAKEFILE_LIST)

demo: ## see what greenletio is for, on a real PostgreSQL (ARGS="--quick")
	@$(BOOTSTRAP) demo
	@$(RUN)/python -m greenletio demo $(ARGS)

test: ## the tests (ARGS="-k name")
	@$(BOOTSTRAP) test
	$(PYTEST) --pgtap $(ARGS)

build: ## .venv and the extensions, for working on them
	@$(BOOTSTRAP)

asan: ## the tests on a build with AddressSanitizer and UBSan (ARGS=--soak: the soak)
	scripts/asan.sh $(ARGS)

fuzz: ## malformed bytes for every decoder of PostgreSQL's values, under AddressSanitizer (ARGS="--seconds 600")
	scripts/asan.sh --fuzz $(ARGS)

leaks: ## tests of every kind, and thousands of waits, calls, loops and threads: nothing may grow
	@$(BOOTSTRAP) test
	GLIBC_TUNABLES=glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0 $(PYTEST) --leaks --timeout 600 $(ARGS)
	$(PYTEST) -m "not leaks and not slow" -k "(leak and not leak_check) or nothing_behind or leave_nothing" $(ARGS)

soak: ## our loop under everything at once for ten minutes (ARGS="--minutes 1")
	@$(BOOTSTRAP) test
	$(RUN)/python -X faulthandler tests/loop/soak.py $(ARGS)

test-pythons: ## the tests on every Python from 3.10 to 3.14 that is found
	scripts/test-pythons.sh $(ARGS)

test-asyncio: ## CPython's own asyncio tests on our loop (ARGS="--loop uvloop.Loop")
	@$(BOOTSTRAP) test
	$(RUN)/python tests/stdlib/run.py $(ARGS)

test-stdlib: ## CPython's own tests of the blocking modules, run green (ARGS="test_socket")
	@$(BOOTSTRAP) test
	$(RUN)/python tests/stdlib/run_green.py $(ARGS)

test-asyncpg: ## asyncpg's own tests on greenletio.pg.aio (CHECKOUT=path ARGS="test_codecs")
	@$(BOOTSTRAP) test
	$(RUN)/python tests/asyncpg/run.py $(or $(CHECKOUT),$(error CHECKOUT= names a copy of asyncpg's repository)) $(ARGS)

test-libpq: ## the driver's tests with the libpq of the embedded PostgreSQL, which is newer (ARGS="tests/pg/test_stream.py")
	@$(BOOTSTRAP) test
	scripts/test-libpq.sh $(ARGS)

test-sqlalchemy: ## SQLAlchemy's compliance suite on our dialect (CHECKOUT=its repository)
	@$(BOOTSTRAP) test
	$(RUN)/python tests/sqlalchemy/run.py $(CHECKOUT) $(ARGS)

test-django: ## Django's own tests on our backend (CHECKOUT=its repository or sdist ARGS="queries")
	@$(BOOTSTRAP) test
	$(RUN)/python tests/django/run.py $(or $(CHECKOUT),$(error CHECKOUT= names a copy of Django's repository)) $(ARGS)

test-all: ## the tests, those marked `slow` too, and all of the above that needs no CHECKOUT
	@$(BOOTSTRAP) test
	$(PYTEST) --pgtap -m '' $(ARGS)
	$(MAKE) leaks asan fuzz test-pythons test-asyncio test-stdlib test-libpq

lint: ## ruff, clang-format, and docker-compose.yml against its schema
	@$(BOOTSTRAP) lint
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/clang-format --dry-run -Werror $(C_FILES)
	! git ls-files --cached --ignored --exclude-standard | grep . # nothing that is made is tracked
	$(RUN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

types: ## mypy, and the stubs of the C modules against the modules
	@$(BOOTSTRAP) test lint
	$(RUN)/mypy -p greenletio
	$(RUN)/python -m mypy.stubtest greenletio._core greenletio._pg

fmt: ## lay the sources out
	@$(BOOTSTRAP) lint
	$(RUN)/ruff check --fix
	$(RUN)/ruff format
	$(RUN)/clang-format -i $(C_FILES)

BENCHES = core loop green pg columns apps

bench: ## every benchmark, and the page of what they measured: docs/benchmarks.md (ARGS=--quick)
	@$(BOOTSTRAP) bench
	mkdir -p build/bench
	set -e; for name in $(BENCHES); do \
	  $(RUN)/python -m benchmarks.$$name --json build/bench/$$name.json $(ARGS); done
	$(RUN)/python -m benchmarks.page $(BENCHES:%=build/bench/%.json)

bench-core: ## the bridge and psycopg2 against their peers (ARGS="--json PATH")
	@$(BOOTSTRAP) bench
	$(RUN)/python -m benchmarks.core $(ARGS)

bench-loop: ## event loops against each other (ARGS="--only 'protocol-*' --json PATH")
	@$(BOOTSTRAP) bench
	$(RUN)/python -m benchmarks.loop $(ARGS)

bench-green: ## the blocking standard library, green, against gevent, eventlet and threads (ARGS="--only lock")
	@$(BOOTSTRAP) bench
	$(RUN)/python -m benchmarks.green $(ARGS)

bench-pg: ## PostgreSQL drivers against each other (ARGS="--only 'select1-*' --json PATH")
	@$(BOOTSTRAP) bench
	$(RUN)/python -m benchmarks.pg $(ARGS)

bench-columns: ## a million rows as Arrow columns, against ADBC and drivers of rows (ARGS="--only mixed")
	@$(BOOTSTRAP) bench
	$(RUN)/python -m benchmarks.columns $(ARGS)

bench-apps: ## Flask and FastAPI by each way of serving them, asked by wrk (ARGS="--quick --contender raw-aio")
	@$(BOOTSTRAP) bench
	$(RUN)/python -m benchmarks.apps $(ARGS)

docs: ## the site of the documentation, in build/docs; warnings are errors (BUILDER=linkcheck: try the links to others)
	@$(BOOTSTRAP) docs
	$(RUN)/python -m sphinx -q -W --keep-going -d build/doctrees -b $(or $(BUILDER),html) docs build/docs

wheel: ## a wheel that needs no library of the system, in dist/, tested (SOURCES=folder with the libraries' archives)
	scripts/wheel.sh

cluster: ## a primary, a standby and PgBouncer from local processes, as docker-compose.yml has them (ARGS="-- psql")
	@$(BOOTSTRAP) test
	$(RUN)/python scripts/cluster.py $(ARGS)

clean: ## remove what building and running made
	rm -rf build dist *.egg-info .venv .venvs greenletio/*.so greenletio/green greenletio/pg
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
