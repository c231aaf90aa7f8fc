# Short commands for everything that a developer runs; the work is done by CMake presets, pip and pytest.
#
# All of it happens in $(VENV) and build/.  A Python (3.10+) and a C/C++ compiler must be there, the rest (CMake and
# Ninja too) comes from PyPI.  An environment that has torch already keeps it; otherwise TORCH is installed first.
PYTHON ?= python3
VENV ?= .venv
# What pip is told to install: a requirement, and options if need be.
TORCH ?= torch==2.13.0
# SAN=1: `make test` runs the C suite under sanitizers instead.
SAN ?=
# Arguments for the program that `make demo`, `make demo-diffusion` or `make bench` runs, or for pytest.
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help env build demo demo-diffusion bench bench-grid test test-c test-example test-python test-asan test-tsan test-cuda cuda lint format abi clean
.DELETE_ON_ERROR:

export PATH := $(abspath $(VENV))/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
py := $(VENV)/bin/python
done := $(VENV)/.deeppcr
# Directories too, so that a file that went away counts as a change.
package_sources := CMakeLists.txt pyproject.toml LICENSE README.md \
    $(shell find cmake csrc shim torch_deeppcr -name __pycache__ -prune -o -print)
python_folders := torch_deeppcr tests examples benchmarks scripts .ci
c_files := $(shell find csrc shim tests/c tests/cuda_on_host examples -name '*.[ch]' -o -name '*.inl' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /    make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24

# ---- environment ------------------------------------------------------------------------------------------

$(done)/tools:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed, PYTHON=$(PYTHON) is " + sys.version)'
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(done)
	$(py) -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' \
	    || $(py) -m pip install $(TORCH)
	$(py) -m pip install 'scikit-build-core>=0.10' 'cmake>=3.25' ninja
	@touch $@

$(done)/package: $(done)/tools $(package_sources)
	CMAKE_ARGS=-DCMAKE_COMPILE_WARNING_AS_ERROR=ON $(py) -m pip install --no-build-isolation .
	@touch $@

# The extras of the package that is installed by now.
$(done)/test $(done)/demo $(done)/diffusion $(done)/lint $(done)/bench: $(done)/%: pyproject.toml | $(done)/package
	$(py) -m pip install 'torch-deeppcr[$*]'
	@touch $@

# Without its dependencies: torchvision would bring another torch.  The tests need timm's models alone.
$(done)/timm: $(done)/test
	$(py) -m pip install --no-deps 'timm>=1.0'
	@touch $@

env: $(done)/tools $(done)/test $(done)/timm $(done)/demo $(done)/diffusion $(done)/lint $(done)/bench ## the environment with everything that the targets below need

build: $(done)/package ## build the package and install it into the environment

# ---- use --------------------------------------------------------------------------------------------------

demo: $(done)/package $(done)/demo ## train a ResNet of 1024 blocks on MNIST, against PyTorch; results in build/demo
	$(py) examples/resnet1024/train.py --out build/demo $(ARGS)

demo-diffusion: $(done)/package $(done)/diffusion ## train small denoisers on digits and sample in every way; results in build/diffusion
	$(py) examples/diffusion/demo.py --out build/diffusion $(ARGS)

# All programs run, whatever the first one finds.
bench: $(done)/package $(done)/bench ## verify, then time against everybody, and count sweeps; ARGS=--full for all of it
	status=0; \
	OMP_WAIT_POLICY=passive $(py) benchmarks/bench.py $(ARGS) || status=1; \
	$(py) benchmarks/sweeps.py $(ARGS) || status=1; \
	OMP_WAIT_POLICY=passive $(py) benchmarks/dropin.py $(ARGS) || status=1; \
	OMP_WAIT_POLICY=passive $(py) benchmarks/calls.py || status=1; \
	exit $$status

bench-grid: $(done)/package $(done)/bench ## chains of every length, width and batch against eager and JAX: twenty minutes
	OMP_WAIT_POLICY=passive $(py) benchmarks/bench.py --grid

# ---- tests ------------------------------------------------------------------------------------------------

test: $(if $(SAN),test-asan test-tsan,test-c test-example test-cuda test-python) ## all tests; with SAN=1 the C tests under sanitizers

test-c: $(done)/tools
	cmake --preset dev
	cmake --build --preset dev
	ctest --preset dev

# The installed library, used as a stranger's project would: find_package, static and shared.
test-example: test-c
	rm -rf build/stage
	cmake --install build/dev --prefix build/stage
	for shared in OFF ON; do \
	    cmake -G Ninja -S examples/recurrence -B build/example-$$shared -DBUILD_SHARED_LIBS=$$shared \
	        -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH=$(CURDIR)/build/stage \
	    && cmake --build build/example-$$shared --clean-first && build/example-$$shared/recurrence || exit 1; \
	done

# The pytest program, not python -m pytest: that would import the source tree, which has no native library.
test-python: $(done)/package $(done)/test $(done)/timm $(done)/demo $(done)/diffusion
	$(VENV)/bin/pytest -n 2 --dist loadfile $(ARGS)

test-asan test-tsan: test-%: $(done)/tools
	cmake --preset $*
	cmake --build --preset $*
	ctest --preset $*

# From scratch: what a kernel uses is told only when it is compiled.
cuda: $(done)/package ## compile the CUDA kernels for all architectures and list what each uses; a hot one must not spill
	cmake --preset cuda -DPython_EXECUTABLE=$(abspath $(py)) $(if $(CUDA_ARCHITECTURES),-DCMAKE_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES),-UCMAKE_CUDA_ARCHITECTURES)
	cmake --build --preset cuda --clean-first >build/cuda/build.log || { cat build/cuda/build.log; exit 1; }
	$(py) .ci/kernels.py build/cuda/build.log

# For one architecture, where there is a compiler; all four of them take four times as long.
test-cuda:
	if command -v nvcc >/dev/null; then $(MAKE) --no-print-directory cuda CUDA_ARCHITECTURES=90-real; \
	else echo "SKIPPED the CUDA library: no nvcc"; fi

# ---- before a change goes in ------------------------------------------------------------------------------

lint: $(done)/lint ## formatters, linters, types, layers
	ruff check $(python_folders)
	ruff format --check $(python_folders)
	mypy
	.ci/layers
	clang-format --dry-run -Werror --ferror-limit=1 $(c_files)
	cmake --preset lint >/dev/null
	find csrc -name '*.c' | xargs -P 2 -n 1 clang-tidy --quiet -p build/lint

format: $(done)/lint ## let the formatters rewrite the files
	ruff check --fix $(python_folders)
	ruff format $(python_folders)
	clang-format -i $(c_files)

abi: $(done)/lint ## build both products as users do, then look inside: stable ABI, dependencies, paths
	cmake --preset release -DDEEPPCR_CUDA=OFF
	cmake --build --preset release
	$(py) .ci/abi.py

clean: ## remove build/ (the environment stays: rm -r .venv)
	rm -rf build
