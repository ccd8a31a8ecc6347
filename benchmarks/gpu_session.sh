#!/usr/bin/env bash
# One command for a machine with a GPU: build the extension, run the tests on the GPU, run the benchmark, keep the results.
# Needs torch, triton and pytest in the Python it finds; no network. Results go to benchmarks/results/ and, where OUT
# names a folder, there too.
#
#   benchmarks/gpu_session.sh            everything, under 9 minutes
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
RESULTS=benchmarks/results
mkdir -p "$RESULTS"
failed=0

step() {
  printf '\n== %s\n' "$1"
  shift
  timeout "$LIMIT" "$@" || { echo "FAILED ($?): $*"; failed=1; }
}

"$PYTHON" - <<'PYTHON' || exit 2
import sys
import torch
sys.exit(0 if torch.cuda.is_available() else "no GPU is visible to torch: this script is for a machine with one")
PYTHON

LIMIT=120 step "build the extension" "$PYTHON" setup.py build_ext --inplace
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
"$PYTHON" -m hybrid_kernels info --json > "$RESULTS/info.cuda.json" || failed=1
LIMIT=200 step "tests on the GPU" "$PYTHON" -m pytest -q -x --timeout 180 -p no:cacheprovider \
  tests/test_functional.py tests/ops tests/triton_ops/test_low_rank.py tests/triton_ops/test_householder.py
for dtype in bfloat16 float32; do
  LIMIT=100 step "layer benchmark, $dtype" "$PYTHON" benchmarks/linear_layer.py --device cuda --dtype "$dtype" \
    --shapes 512x4096x4096,2048x4096x4096,8192x4096x4096,8192x4096x14336 --rounds 50 \
    --output "$RESULTS/linear_layer.cuda.$dtype.json"
done
if [ -n "${OUT:-}" ]; then cp "$RESULTS"/*cuda* "$OUT"/; fi
exit $failed
