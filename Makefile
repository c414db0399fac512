# The same commands by hand and in CI. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVE_ARGS ?=
# PyTorch is needed by tests and by export from safetensors only. It is not in the lock: its wheels differ by platform.
TORCH := torch==2.13.0

COMMA := ,

.DEFAULT_GOAL := help
.PHONY: help serve test test-all check lock builtin model-repository triton triton-setup perf-analyzer-setup peers native \
	native-asan native-tsan clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

$(VENV)/.serve: requirements/serve.txt pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements/serve.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.serve requirements/dev.txt
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --require-hashes -r requirements/dev.txt
	touch $@

serve: $(VENV)/.serve ## serve the built-in model on 127.0.0.1:8000 (SERVE_ARGS="--port 9000 ...")
	$(BIN)/crossrank serve $(SERVE_ARGS)

test: $(VENV)/.dev triton-setup perf-analyzer-setup ## set up what the tests need and run them, the slow ones left out
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-all: $(VENV)/.dev triton-setup perf-analyzer-setup ## run every test, the large architectures included
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.dev ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.triton/.ready: requirements/triton.txt
	$(BIN)/pip install --quiet --no-deps --require-hashes --upgrade --target .triton -r $<
	touch $@

triton-setup: $(VENV)/.dev .triton/.ready ## the real tritonserver, from its wheel, into .triton

.perf-analyzer/.ready: requirements/perf-analyzer.txt .triton/.ready
	$(BIN)/pip install --quiet --no-deps --require-hashes --upgrade --target .perf-analyzer -r $<
	mkdir -p .perf-analyzer/lib
	cp .triton/nvidia_pytriton.libs/libb64-*.so.0d .perf-analyzer/lib/libb64.so.0d
	touch $@

perf-analyzer-setup: $(VENV)/.dev .perf-analyzer/.ready ## the real perf_analyzer, from its wheel, into .perf-analyzer

triton: triton-setup ## serve the built-in model with the real tritonserver on this CPU
	$(BIN)/crossrank triton

model-repository: $(VENV)/.dev ## put the built-in model's weights into model_repository/
	$(BIN)/crossrank repository builtin --target cpu --out model_repository

native: $(VENV)/.dev ## compile the native engine into the tree (CROSSRANK_NATIVE_FLAGS adds flags, like -g)
	$(BIN)/python setup.py --quiet build_ext --inplace --force

# Built aside and loaded from there. Python has no sanitizer, so its library comes first, with the C++ library whose
# exceptions it watches; leaks are not sought.
SANITIZED = CROSSRANK_NATIVE_FLAGS="-O1 -g -fno-omit-frame-pointer -fsanitize=$(1) -fno-sanitize-recover=all" \
	$(BIN)/python setup.py --quiet build_ext --build-lib build/$(2) --build-temp build/$(2)/objects && \
	CROSSRANK_NATIVE_DIR=build/$(2)/crossrank_server/native LD_PRELOAD="$$($(CXX) -print-file-name=lib$(2).so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 TSAN_OPTIONS=halt_on_error=1 \
	$(BIN)/python -m pytest --timeout 1800 $(3)

native-asan: $(VENV)/.dev ## the native engine's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(call SANITIZED,address$(COMMA)undefined,asan,tests/unit/test_native_kernels.py tests/unit/test_native_input.py)

native-tsan: $(VENV)/.dev ## its threads under ThreadSanitizer
	$(call SANITIZED,thread,tsan,tests/unit/test_native_kernels.py -k threads)

builtin: $(VENV)/.dev ## make the built-in bundle anew from ../shared/models/crossrank-mini
	$(BIN)/crossrank export ../shared/models/crossrank-mini --out server/crossrank_server/builtin \
		--card server/crossrank_server/builtin/README.md

.venv-peers/.ready: perf/peers/sentence-transformers.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet -r $<
	touch $@

peers: .venv-peers/.ready ## prepare the environment of `crossrank bench peers`

LOCK := $(BIN)/uv pip compile --universal --python-version 3.10 --generate-hashes --quiet --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links
lock: $(VENV)/.dev ## write the lock files anew
	$(LOCK) pyproject.toml requirements/torch-needs.in --extra dev --override requirements/no-torch.override \
		--output-file requirements/dev.txt
	$(LOCK) pyproject.toml --extra openvino --constraint requirements/dev.txt --output-file requirements/serve.txt
	$(LOCK) requirements/triton.in --no-deps --output-file requirements/triton.txt
	$(LOCK) requirements/perf-analyzer.in --no-deps --output-file requirements/perf-analyzer.txt
	$(LOCK) pyproject.toml --extra openvino --extra triton --constraint requirements/dev.txt \
		--output-file deploy/docker/gateway.txt
	$(LOCK) pyproject.toml deploy/docker/nvidia.in --output-file deploy/docker/nvidia.txt

clean: ## remove environments and caches
	rm -rf $(VENV) .venv-* .triton .perf-analyzer .pytest_cache .mypy_cache .ruff_cache .hypothesis build
