#!/usr/bin/env bash
# Everything that is worth knowing of a machine with an NVIDIA GPU, in one go: correctness, the engine alone, Triton under
# perf_analyzer, and end to end. A step that fails is named, and the others still run.
#
#   make bench-gpu                       the built-in model
#   make bench-gpu MODEL=HUB_ID_OR_DIR   another one, exported to fp32 and fp16 first
#
# Environment:
#   DEVICE=cpu       rehearse every step on the CPU, to see that the script works; the figures say nothing of GPUs
#   PYTHON=python    an environment that is set up already; otherwise `make` sets one up in .venv-cuda
#   OUT=DIR          where results go; perf/results/gpu-NAME by default
#   DURATION=20      seconds of each load
#   CONCURRENCY=64   requests under way, over all load generators
#   LOADERS=4        load generators at once; one for each four cores by default
#   WORKERS=4        processes that compute and serve HTTP, without Triton; one for every four cores by default
#   INSTANCES=2      processes of Triton that compute
#   GATEWAYS=8       processes that serve HTTP in front of Triton; one for every two cores by default
#   SWEEP=...        options of crossrank perf-analyzer; --concurrency 1,4,16,64 by default
#   TRITON=HOST:PORT gRPC of a Triton that runs already, such as NVIDIA's container with a repository of the model for
#                    tensorrt or onnxruntime-gpu; otherwise one is started with the engine of this project
# shellcheck disable=SC2329 # step calls functions by name
set -uo pipefail
cd "$(dirname "$0")/../../.." || exit 1

model=${1:-builtin}
device=${DEVICE:-cuda}
duration=${DURATION:-20}
cores=$(nproc)
loaders=${LOADERS:-$(((cores + 3) / 4))}
concurrency=${CONCURRENCY:-64}
workers=${WORKERS:-$(((cores + 3) / 4))}
instances=${INSTANCES:-2}
gateways=${GATEWAYS:-$(((cores + 1) / 2))}
triton=${TRITON:-127.0.0.1:18001}

case $device in
cuda)
    if ! gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader --id=0 2>&1); then
        echo "bench-gpu: no NVIDIA driver or no GPU answers here: ${gpu##*$'\n'}" >&2
        echo "Install the driver until nvidia-smi lists the GPU. DEVICE=cpu make bench-gpu rehearses the steps on the CPU." >&2
        exit 1
    fi
    engines=(onnxruntime cuda)
    read -ra sweep <<<"${SWEEP:---concurrency 1,4,16,64}"
    ;;
cpu)
    gpu="rehearsal on CPU"
    engines=(onnxruntime)
    sweep=(--concurrency 4 --rounds 1 --only engine --bucket 96)
    ;;
*)
    echo "bench-gpu: DEVICE is $device, it must be cuda or cpu" >&2
    exit 1
    ;;
esac
engine=${engines[-1]}

name=$(tr '[:upper:] ' '[:lower:]-' <<<"$gpu" | tr -cd 'a-z0-9-')
out=${OUT:-perf/results/gpu-$name}
rm -rf "$out/logs" && mkdir -p "$out/logs" || exit 1
rm -f "$out"/{engines,perf-analyzer,load-*}.json "$out/steps.tsv"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
servers=()
failed=0

# Ends the servers of the last steps.
stop_servers() {
    for pid in "${servers[@]}"; do
        kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null
    done
    servers=()
}
trap 'stop_servers; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# Runs a step: its name, then the command. Its output goes to a log.
step() {
    local name=$1 begin=$SECONDS outcome=ok log=$out/logs/$1.log
    shift
    printf '%-16s ' "$name"
    "$@" >"$log" 2>&1
    local code=$?
    if [ "$code" -ne 0 ]; then
        outcome="FAILED, exit code $code"
        failed=1
    fi
    printf '%s\t%s\t%s\n' "$name" "$outcome" "$((SECONDS - begin))" >>"$out/steps.tsv"
    echo "$outcome, $((SECONDS - begin)) s"
    [ "$code" -eq 0 ] || tail -n 3 "$log" | sed 's/^/    /'
    return "$code"
}

crossrank() { "$python" -m crossrank_server "$@"; }

set_up() {
    # The latter two without PyTorch and what else the tests need.
    make cuda && make .triton/.ready .perf-analyzer/.ready BIN=.venv-cuda/bin
}

describe_machine() {
    {
        echo "$gpu; $(date -u +%Y-%m-%d); $(git rev-parse --short HEAD 2>/dev/null || echo 'no git'); DEVICE=$device MODEL=$model"
        if [ "$device" = cuda ]; then
            nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm --format=csv
            nvidia-smi | grep -o 'CUDA Version: [0-9.]*'
        fi
        grep -m1 'model name' /proc/cpuinfo
        echo "$cores cores, $(uname -sr)"
    } >"$out/machine.txt"
    cat "$out/machine.txt"
    "$python" -c 'from importlib.metadata import distributions as d; print(*sorted({f"{x.name}=={x.version}" for x in d()}), sep="\n")' \
        >"$out/packages.txt"
}

write_bundle() {
    if [ "$model" = builtin ]; then
        "$python" -m tests.engine_bundle "$work/bundle"
    else
        crossrank export "$model" --out "$work/bundle" --precision fp32,fp16
    fi
}

# The ranking of fp16 on the GPU beside that of fp32 on the CPU.
compare_quality() {
    local shared=${CROSSRANK_SHARED:-../shared}/data
    if [ ! -f "$shared/dl19-qrels.txt" ]; then
        echo "no DL 2019 file at $shared (CROSSRANK_SHARED names another place): nothing to rank" >&2
        return 1
    fi
    local input=(--candidates "$shared/dl19-bm25-top100.jsonl.gz" --qrels "$shared/dl19-qrels.txt" --model "$work/bundle" --plot none)
    crossrank eval "${input[@]}" --engine onnxruntime --precision fp32 --out "$work/reference" &&
        crossrank eval "${input[@]}" --engine "$engine" --precision fp32,fp16 --out "$out/eval" \
            --compare "$(find "$work/reference" -name '*fp32*' -name '*.run' | head -n 1)"
}

# Waits until a server's path answers 200: name, URL, process.
wait_ready() {
    for _ in $(seq 1200); do
        curl -fs -o /dev/null "$2" && return
        kill -0 "$3" 2>/dev/null || break
        sleep 0.25
    done
    echo "$1 did not become ready" >&2
    return 1
}

start_triton() {
    # Not by the function: the process to end is this one.
    "$python" -m crossrank_server triton --model "$work/bundle" --engine "$engine" --instances "$instances" --run-dir "$work/triton" \
        --http-port 18003 --grpc-port 18001 --metrics-port 18002 >"$out/logs/tritonserver.log" 2>&1 &
    servers+=($!)
    wait_ready tritonserver http://127.0.0.1:18003/v2/health/ready $!
}

analyze() {
    crossrank perf-analyzer --url "$triton" --model "$work/bundle" "${sweep[@]}" --out "$out"
}

# Starts some processes: how many, then their options.
start_gateway() {
    local count=$1
    shift
    "$python" -m crossrank_server serve --port 18000 --workers "$count" --log-level warning "$@" >"$out/logs/gateway.log" 2>&1 &
    servers+=($!)
    wait_ready "crossrank serve" http://127.0.0.1:18000/health/ready $! || return
    # Connections stay with those that listen when they are made.
    for _ in $(seq 480); do
        [ "$(curl -fs http://127.0.0.1:18000/metrics | grep -c '^process_cpu_seconds_total')" = "$count" ] && return
        kill -0 $! 2>/dev/null || break
        sleep 0.25
    done
    echo "crossrank serve has not all of its $count processes" >&2
    return 1
}

# Load from several processes at once, which one alone could not make: the name of the result.
load() {
    local pids=() code=0
    for i in $(seq "$loaders"); do
        crossrank bench load --url http://127.0.0.1:18000 --concurrency $(((concurrency + loaders - 1) / loaders)) \
            --duration "$duration" --json "$out/load-$1-$i.json" --seed "$i" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do
        wait "$pid" || code=$?
    done
    return "$code"
}

measure() {
    step quality compare_quality
    step engines crossrank bench engines --model "$work/bundle" "${engines[@]/#/--engine=}" --precision auto \
        --threads 3 --rounds 3 --bucket-s "$((duration > 4 ? duration / 4 : 1))" --json "$out/engines.json"
    step in-process start_gateway "$workers" --model "$work/bundle" --engine "$engine" &&
        step load-in-process load in-process
    stop_servers
    [ -n "${TRITON:-}" ] || step triton start_triton || return
    step perf-analyzer analyze
    step gateways start_gateway "$gateways" --model "$work/bundle" --engine triton --triton-url "grpc://$triton" &&
        step load-triton load triton
}

if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON
else
    python=.venv-cuda/bin/python
    step set-up set_up || exit 1
fi
step machine describe_machine
step tests "$python" -m pytest -q -rs tests/gpu tests/golden
if step bundle write_bundle; then
    measure
fi
stop_servers
echo
PYTHONPATH=perf${PYTHONPATH:+:$PYTHONPATH} "$python" -m lab.gpu.summary "$out"
echo "in $out"
exit "$failed"
