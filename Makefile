# The two commands of the README are `make demo` and `make test`; each sets itself up.
PYTHON ?= python3
TORCH ?= yes
PIP = -m pip --disable-pip-version-check --quiet
EXTRAS_yes = export,test
EXTRAS_no = test,tokenizers
EXTRAS = $(EXTRAS_$(TORCH))
# What the compiled core is made of: an edit installs it again.
CORE = $(wildcard CMakeLists.txt cmake/* kernels/CMakeLists.txt kernels/cpu/CMakeLists.txt kernels/cpu/*.cpp kernels/cpu/*.h)
MAKEFLAGS += --no-print-directory
OLD_PYTHON = kpl-engine needs Python 3.10 or newer; name one with: make PYTHON=python3.12 ...

.PHONY: help demo test lint types contracts check bench bench-full clean
.PHONY: core-test core-sanitize core-aarch64 core-fuzz instructions
.PHONY: grpc-proto
.PHONY: cuda-compile cuda-bounds test-gpu bench-gpu

help:
	@echo "make demo           install the runtime (no torch) and classify the bundled images"
	@echo "make test           install everything and run every test (TORCH=no leaves the export tests out)"
	@echo "make check          lint, types, import contracts and tests"
	@echo "make core-test      the native tests of the compiled core, for every instruction set of this machine"
	@echo "make core-sanitize  the same under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer"
	@echo "make core-fuzz      the tests of the core in Python, fuzz tests too, on a module built under the first two"
	@echo "make instructions   instructions of the core and the server against the committed counts (Debian: valgrind)"
	@echo "make core-aarch64   cross-compiled and emulated (Debian: g++-aarch64-linux-gnu qemu-user)"
	@echo "make cuda-compile   nvcc compiles the GPU kernels for every architecture; registers and spills against their bounds"
	@echo "make cuda-bounds    writes those bounds anew (kernels/bounds.json)"
	@echo "make bench          the benchmarks of benchmarks/ in short, and the README's tables from them"
	@echo "make bench-full     the same as long as the README's tables were measured"
	@echo "make test-gpu       on a machine with an NVIDIA GPU: the kernels' tests on it, and under compute-sanitizer"
	@echo "make bench-gpu      on a machine with an NVIDIA GPU: the figures of benchmarks/README.md (predicted: BENCH=--dry-run)"
	@echo "make grpc-proto     compiles the messages of the gRPC door anew"
	@echo "make clean          remove environments and outputs"

# `made` is an environment without the package, `ready` has it: an edit of the core does not download torch again.
.venv/made: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "$(OLD_PYTHON)")'
	$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/ready: .venv/made $(CORE)
	.venv/bin/python $(PIP) install -e .
	@touch $@

.venv-dev/made-$(TORCH): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "$(OLD_PYTHON)")'
	$(PYTHON) -m venv --clear .venv-dev
	@touch $@

.venv-dev/ready-$(TORCH): .venv-dev/made-$(TORCH) $(CORE)
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

# The native tests need a compiler and CMake, not Python: those of the test environment serve where the system has none.
CMAKE = $(or $(shell command -v cmake),"$(CURDIR)/.venv-dev/bin/cmake")
CTEST = $(or $(shell command -v ctest),"$(CURDIR)/.venv-dev/bin/ctest")
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
COMMA = ,
NATIVE = -DKPL_CUDA=OFF -DKPL_CORE=ON -DKPL_CORE_MODULE=OFF -DKPL_CORE_TESTS=ON -DKPL_CORE_STRICT=ON
define configure
	@$(CMAKE) -S . -B build/$(1) $(NATIVE) $(2) >build/$(1).log || { cat build/$(1).log; exit 1; }
endef
define run_native
	$(call configure,$(1),$(2))
	$(CMAKE) --build build/$(1) --parallel $(JOBS)
	cd build/$(1) && $(CTEST) --output-on-failure --no-tests=error
endef

build:
	@mkdir -p build

core-test: | build
	$(call run_native,core)

# On the build of core-test. After a change that was meant: .venv-dev/bin/python benchmarks/instructions --update --because "..."
instructions: .venv-dev/ready-$(TORCH) | build
	.venv-dev/bin/python benchmarks/instructions --check

# One build serves the native tests and the fuzz tests: compiling the kernels under sanitizers is what takes time.
SANITIZED = -DKPL_CORE_SANITIZE=address$(COMMA)undefined -DCMAKE_BUILD_TYPE=RelWithDebInfo
core-sanitize: | build
	$(call run_native,core-address,$(SANITIZED))
	$(call run_native,core-thread,-DKPL_CORE_SANITIZE=thread)

core-aarch64: | build
	$(call run_native,core-aarch64,-DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake)

# A core of its own in front of the installed one: -S leaves out the import hook that would find the installed one first.
# CPython does not free all it allocates, so leaks are not looked for here; the native tests do. Memory that cannot be had
# is a null pointer as usual: a test asks for some.
SITE = $(shell .venv-dev/bin/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
ASAN = detect_leaks=0:allocator_may_return_null=1
PRELOAD = $(shell c++ -print-file-name=libasan.so):$(shell c++ -print-file-name=libubsan.so)
FUZZ = import os, sys; sys.path[0] = os.path.abspath("build/fuzz-site"); import kpl_engine._core, pytest; \
	sys.exit(pytest.main(["--capture=sys", "tests/solver/test_core.py", "tests/solver/test_core_fuzz.py"]))
core-fuzz: .venv-dev/ready-$(TORCH) | build
	$(call configure,core-address,$(SANITIZED) -DKPL_CORE_MODULE=ON -DPython_EXECUTABLE="$(CURDIR)/.venv-dev/bin/python")
	$(CMAKE) --build build/core-address --parallel $(JOBS) --target _core
	rm -rf build/fuzz-site && mkdir build/fuzz-site && cp -r kpl_engine build/fuzz-site
	$(CMAKE) --install build/core-address --prefix build/fuzz-site
	PYTHONPATH="$(SITE)" LD_PRELOAD=$(PRELOAD) ASAN_OPTIONS=$(ASAN) .venv-dev/bin/python -S -c '$(FUZZ)'

# Needs nvcc, no GPU and no package. FIGURES=75,90,120 reads the figures of these alone, in a quarter of the time.
FIGURES_ARGUMENT = $(if $(FIGURES),--figures $(FIGURES))
cuda-compile:
	$(PYTHON) kernels/check_bounds.py --jobs $(JOBS) $(FIGURES_ARGUMENT)

cuda-bounds:
	$(PYTHON) kernels/check_bounds.py --jobs $(JOBS) --write $(FIGURES_ARGUMENT)

# In turn, and alone on the machine. The tables of the pages are those of the newest results, whichever these are.
bench: BENCH_OPTION = --quick
bench bench-full: .venv-dev/ready-yes
	.venv-dev/bin/python $(PIP) install -c constraints.txt -e ".[rival-openvino]"
	.venv-dev/bin/python benchmarks/learn_proxies.py $(BENCH_OPTION)
	.venv-dev/bin/python benchmarks/end_to_end.py $(BENCH_OPTION)
	.venv-dev/bin/python benchmarks/cold_start.py $(BENCH_OPTION)
	.venv-dev/bin/python benchmarks/rivals.py $(BENCH_OPTION)
	.venv-dev/bin/python benchmarks/serving.py $(BENCH_OPTION)
	.venv-dev/bin/python benchmarks/tables.py

# The messages of the gRPC door, after an edit of kpl_engine/server/grpc/*.proto.
grpc-proto: .venv-dev/ready-yes
	.venv-dev/bin/python -m kpl_engine.server.grpc.compile_proto

# On what the machine has (its torch, CUDA and Python packages): only what is missing is installed, beside it.
test-gpu:
	$(PYTHON) tests/gpu/run.py

bench-gpu:
	$(PYTHON) benchmarks/gpu_bench.py $(BENCH)

clean:
	rm -rf .venv .venv-dev .venv-gpu demo-output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
