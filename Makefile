# make demo, make test: each works from a fresh clone with Python 3.11+ and a package index, and installs only once.
# the first that is new enough
PYTHON ?= $(firstword $(foreach name,python3 python3.11 python3.12 python3.13,$(shell $(name) -c 'import sys; print("$(name)" * (sys.version_info >= (3, 11)))' 2>/dev/null)) python3)
BIN := .venv/bin

.PHONY: demo test test-all lint bench clean nano nano-rooms nano-reckoning nano-semantics nano-geometry nano-reading

demo: .venv/installed
	$(BIN)/allo demo

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/pytest

test-all: .venv/installed
	$(BIN)/pytest -m "slow or not slow"

lint: .venv/installed
	$(BIN)/ruff check --fix .

bench: .venv/installed
	for file in $(filter-out %/graph_vsibench.py %/ssr_rooms.py,$(wildcard benchmarks/[a-z]*.py)); do $(BIN)/python $$file || exit 1; done  # those two measure data or models of your own

# nano from nothing, two stages side by side where they do not build on one another; run again to resume. NANO: where to, and --smoke
NANO ?= --out out/nano
STAGES := $(BIN)/allo train recipes/nano.yaml $(NANO) --stages
nano: nano-rooms
	$(MAKE) -j2 nano-reckoning nano-geometry nano-semantics nano-reading
	$(STAGES) features naming-nano sft-nano package

nano-rooms: .venv/installed
	$(STAGES) rooms tokenizer

nano-reckoning nano-semantics:
	OMP_NUM_THREADS=1 $(STAGES) $(@:nano-%=%)

nano-geometry:
	OMP_NUM_THREADS=1 $(STAGES) matching geometry

nano-reading:
	OMP_NUM_THREADS=1 $(STAGES) reading

nano-semantics: nano-reckoning  # so that both cores are done at the same time
nano-reading: nano-reckoning nano-geometry

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("allocentric needs Python 3.11 or newer, found %s; try make PYTHON=python3.11" % sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf .venv out demo
