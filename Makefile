# The two commands of the README are `make demo` and `make test`; each sets itself up.
PYTHON ?= python3
TORCH ?= yes
PIP = -m pip --disable-pip-version-check --quiet
EXTRAS_yes = export,test
EXTRAS_no = test,tokenizers
EXTRAS = $(EXTRAS_$(TORCH))

.PHONY: help demo test lint types contracts check bench clean

help:
	@echo "make demo    install the runtime (no torch) and classify the bundled images"
	@echo "make test    install everything and run every test (TORCH=no leaves the export tests out)"
	@echo "make check   lint, types, import contracts and tests"
	@echo "make bench   the benchmarks of benchmarks/ (slow)"
	@echo "make clean   remove environments and outputs"

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "kpl-engine needs Python 3.10 or newer; name one with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python $(PIP) install -e .
	@touch $@

.venv-dev/ready-$(TORCH): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "kpl-engine needs Python 3.10 or newer; name one with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv --clear .venv-dev
	.venv-dev/bin/python $(PIP) install -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

demo: .venv/ready
	.venv/bin/kpl-engine demo --output demo-output

test: .venv-dev/ready-$(TORCH)
	.venv-dev/bin/python -m pytest -n 2 --dist loadfile

lint: .venv-dev/ready-$(TORCH)
	.venv-dev/bin/ruff check .
	.venv-dev/bin/ruff format --check .

types: .venv-dev/ready-$(TORCH)
	.venv-dev/bin/mypy

contracts: .venv-dev/ready-$(TORCH)
	.venv-dev/bin/lint-imports

check: lint types contracts test

bench: .venv-dev/ready-yes
	.venv-dev/bin/python benchmarks/learn_proxies.py
	.venv-dev/bin/python benchmarks/end_to_end.py
	.venv-dev/bin/python benchmarks/cold_start.py

clean:
	rm -rf .venv .venv-dev demo-output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
