#!/usr/bin/env bash
# All questions about TensorRT on one GPU: sets up what they need, then runs lab.gpu.tensorrt, whose docstring says more.
#
#   perf/lab/gpu/tensorrt.sh --out perf/results/gpu-NAME [--limit-s 540] [--only load] [--rehearse]
#
# Environment:
#   WHEELS=DIR      pieces of wheels (perf/lab/gpu/wheels.py pack): joined, checked, and installed beside what is there
#   PYTHON=python3  the Python to use; the packages of requirements/cuda.txt that WHEELS lacks must be installed there
set -euo pipefail
cd "$(dirname "$0")/../../.."

python=${PYTHON:-python3}
if [ -n "${WHEELS:-}" ]; then
    joined=$(mktemp -d)
    trap 'rm -rf "$joined"' EXIT
    "$python" perf/lab/gpu/wheels.py unpack "$WHEELS" "$joined/wheels" >/dev/null
    # A folder, not an environment: what the machine has already stays as it is.
    "$python" -m pip install --quiet --no-index --no-deps --target "$joined/packages" "$joined"/wheels/*.whl
    export PYTHONPATH=$joined/packages${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONPATH=server:client:export:perf:.${PYTHONPATH:+:$PYTHONPATH}
"$python" -m lab.gpu.tensorrt "$@"
