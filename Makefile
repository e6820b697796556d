# make bench, make test: everything from a fresh clone, into a virtual environment of the project's own.
#   make TORCH=2.11.0 test     another torch        make PYTHON=python3.12 test     another Python
PYTHON ?= python3
TORCH ?= 2.13.0
BENCH_ARGS ?=
TEST_ARGS ?=

# A process for each core: the tests are single-threaded. Those of a file stay together where they share what is built.
WORKERS := -n auto

SANITIZE_TESTS := tests/test_backends_agree.py tests/test_algorithms.py tests/test_not_finite.py \
	tests/test_cuda_kernels.py::test_gradients_from_recomputed_gates

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-torch-$(TORCH)
BUILT := $(VENV)/.built-torch-$(TORCH)
SOURCES := $(wildcard csrc/* csrc/*/*)
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: bench test instruction-sets sanitize lint format clean

bench: $(BUILT)
	$(BIN)/python -m convgru_fused bench $(BENCH_ARGS)

test: $(BUILT)
	$(BIN)/python -m pytest $(WORKERS) --dist loadfile --cov=convgru_fused --cov-report= $(TEST_ARGS)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest $(WORKERS) --cov=convgru_fused --cov-append --cov-report=term \
		--cov-fail-under=90 tests/interpreted

# The tests of the kernels on every lesser instruction set that this machine has. avx512_bf16 has kernels of its own for 1x1
# alone (csrc/cpu/isa.cpp), so beside it only those of avx512 are new.
KERNEL_TESTS := tests/test_algorithms.py tests/test_backends_agree.py tests/test_determinism.py tests/test_layouts.py \
	tests/test_not_finite.py tests/test_precision.py tests/test_properties.py
instruction-sets: $(BUILT)
	sets=$$($(BIN)/python -c "from convgru_fused._build_info import cpu_capabilities; \
	    print(*cpu_capabilities()[:-1])") || exit 1; \
	for set in $$sets; do \
		echo "$$set:"; \
		only=; if [ $$set = avx512 ]; then only="-k 1x1"; fi; \
		CONVGRU_FUSED_CPU_CAPABILITY=$$set $(BIN)/pytest -q $(WORKERS) -p no:cacheprovider $$only $(KERNEL_TESTS) || exit 1; \
	done

# The native code under AddressSanitizer and UndefinedBehaviorSanitizer, in a build of its own. Python and torch leak
# on purpose.
SANITIZED := build/sanitized
sanitize: $(INSTALLED)
	CONVGRU_FUSED_SANITIZE=1 $(BIN)/python setup.py --quiet build --build-base build/sanitize --build-lib $(SANITIZED)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$(SANITIZED) \
	$(BIN)/pytest -q $(WORKERS) --dist loadfile -p no:cacheprovider --native-from $(SANITIZED) $(SANITIZE_TESTS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(filter %.h %.cpp %.inl %.cuh %.cu,$(SOURCES) $(wildcard tests/cuda_on_host/*))
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(filter %.h %.cpp %.inl %.cuh %.cu,$(SOURCES) $(wildcard tests/cuda_on_host/*))

# The compiled part finds torch at build time, so torch comes first and the build is not isolated. Some wheels come without
# what they depend on: of scikit-video the clips are wanted, of torchvision RAFT, of dgmr the ConvGRU; triton belongs to
# the torch that has CUDA, and is tested beside the other.
$(INSTALLED): pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==$(TORCH) numpy "setuptools>=77" "pybind11>=2.13" ninja
	CONVGRU_FUSED_BUILD=0 \
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[compare,models,test,lint]"
	$(BIN)/python -m pip install --quiet --no-deps scikit-video==1.1.11 torchvision==0.28.0 dgmr==1.4.4 \
		triton==3.6.0
	touch $@

$(BUILT): $(INSTALLED) setup.py $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

clean:
	rm -rf $(VENV) build bench-results *.egg-info convgru_fused/*.so
