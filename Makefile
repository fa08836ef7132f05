# make demo   learn to sort from 40 demonstrations, then sort a list with what was learnt (four minutes)
# make test   every check of the project (a quarter of an hour on two cores)
#
# Both set up everything themselves, in .venv, and need only make, pip and Python 3.11 or 3.12. The set-up is done once
# and again when pyproject.toml or constraints.txt change. Another Python: make test PYTHON=/path/to/python3.12

PYTHON ?= $(shell for python in python3 python3.11 python3.12; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& { command -v $$python; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# One thread: the models are small, and two threads on two busy cores are several times slower than one.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MPLBACKEND := Agg
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

heading = @printf '\n== %s\n' '$(1)'

.PHONY: help demo test lint types docs unit clean
.NOTPARALLEL:
.SUFFIXES:

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

demo: $(READY)
	$(call heading,Learning to sort from 40 demonstrations)
	$(BIN)/python examples/bubble_sort.py --demos 40 --starts 4 --trial 300 --updates 2000 --demo --out out/demo

test: lint types docs unit

lint: $(READY)
	$(call heading,ruff: lint and format)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(call heading,mypy)
	$(BIN)/mypy -p pyrocontrol

docs: $(READY)
	$(call heading,sphinx: the site in docs/_build/html (a warning is an error))
	$(BIN)/python -m sphinx -b html -E -W --keep-going -q docs docs/_build/html

unit: $(READY)
	$(call heading,pytest (a warning is an error))
	$(BIN)/python -m pytest -n 2 --dist worksteal

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build .mypy_cache .pytest_cache .ruff_cache

# Debian splits the part of venv that brings pip into a package of its own; without it, the system's pip fills in.
$(READY): pyproject.toml constraints.txt
	$(call heading,Setting up $(VENV): some GB if torch comes with CUDA and far less if not)
	@test -n '$(PYTHON)' || { echo 'No Python 3.11 or 3.12 found; name one: make PYTHON=/path/to/python3.12' >&2; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
	|| { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,docs,mujoco,dm-control,robotics,metaworld,bullet,flows,numpyro,data,scale]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps imitation seals
	@mkdir -p $(VENV)/typing && ln -sfn ../.. $(VENV)/typing/pyrocontrol
	@touch $(READY)
