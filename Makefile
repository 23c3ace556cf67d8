# Two commands do everything: `make demo` and `make test`. Each makes its own virtual environment.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
# Test processes, one more than two cores: they wait for other processes half of their time. A file stays in one
# of them, since its tests may share a node and a PACS; tests/conftest.py puts the longest first.
WORKERS ?= 3
STAMP := $(VENV)/.installed
# Tests start hundreds of processes: without its bytecode each would compile the software anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test lint types check bench physics spect chaos fuzz load clean

help:
	@echo "make demo    a virtual patient through the whole node; pictures in demo-output/"
	@echo "make test    every test that runs without a GPU, under ten minutes"
	@echo "make check   lint, types and tests"
	@echo "make physics the validation tables of docs/physics.md (an hour; minutes with QUICK=1)"
	@echo "make spect   the simulated camera against its model and published recovery (minutes)"
	@echo "make chaos   200 kills, 50 full disks, 50 PACS outages, every power cut; was anything lost? (an hour; QUICK=1)"
	@echo "make fuzz    100,000 inputs that no sane peer would send (an hour; minutes with QUICK=1)"
	@echo "make load    20 modalities at once, and Orthanc for comparison; was anything lost? (half an hour, 13 GB; QUICK=1)"
	@echo "make bench   receiving against Orthanc, convolution, one full-size case, the network (minutes)"

# Installed anew only when the requirements change.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[gpu,postgres,dask,dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(RUN)/dicomnode demo --out demo-output

test: $(STAMP)
	$(RUN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

types: $(STAMP)
	$(RUN)/mypy

check: lint types test

bench: $(STAMP)
	$(RUN)/python -m tests.bench.receive_bench
	$(RUN)/python -m tests.bench.case_bench
	$(RUN)/python -m tests.bench.network_bench
	$(RUN)/python -m tests.bench.query_bench

physics: $(STAMP)
	$(RUN)/python -m tests.bench.physics_validation $(if $(QUICK),--quick --dry)

spect: $(STAMP)
	$(RUN)/python -m tests.bench.spect_validation

# A run that was broken off goes on with the same SEED.
chaos: $(STAMP)
	POWER_LOSS=$(if $(QUICK),,all) KILL_SEED=$(or $(SEED),random) $(RUN)/python -m pytest -q --timeout 3600 tests/dicomnode/test_power_loss.py
	$(RUN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(QUICK),--quick,--write docs/bench-chaos.md)

fuzz: $(STAMP)
	$(RUN)/python -m tests.fuzz $(if $(SEED),--seed $(SEED)) $(if $(QUICK),--inputs 2000,--write docs/bench-fuzz.md)

# 4 modalities with 100 slices each are QUICK; KEEP=FOLDER works there and leaves everything.
load: $(STAMP)
	$(RUN)/python -m tests.bench.load_bench $(if $(KEEP),--keep $(KEEP)) $(if $(QUICK),--modalities 4 --slices 100,--write docs/bench-load.md)

clean:
	rm -rf $(VENV) demo-output bench-output chaos-output build *.egg-info
