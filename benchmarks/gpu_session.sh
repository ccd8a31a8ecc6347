#!/usr/bin/env bash
# One command for a machine with a GPU, under 10 minutes: build, test on the GPU, measure, keep the results.
#
#   benchmarks/gpu_session.sh                 or: PYTHON=… OUT=folder HYBRID_KERNELS_COMMIT=abc1234 benchmarks/gpu_session.sh
#
# Needs torch, triton, rich, typer, pytest and pytest-timeout in the Python it finds, and transformers and peft for the
# peers; no network and no git. What the machine lacks of these can lie in a folder that PYTHONPATH names. Without aenum
# the hybrid is measured as a layer, but not in a model, where it is a PEFT method, and the tests of adapters in a
# training stack are left out. Seconds a step may take, and what it leaves in
# benchmarks/results/:
#
#    75  build the extension
#    20  what is installed and would run                info.cuda.json
#    45  every operator against the reference           validate.cuda.json
#    90  tests on the GPU, failures listed              tests.cuda.txt
#    75  tune: which variant wins on which shape        selection.cuda.json
#    75  one layer, bfloat16, variants and peers        bench.cuda.bfloat16.jsonl
#    25  the Cayley transform, float32, and peers       bench.cuda.float32.jsonl
#    30  the single products of a layer                 products.cuda.bfloat16.json
#    45  a step of a Llama-shaped model, profiled       bench.cuda.bfloat16.jsonl
#    35  steps of stock PEFT and accelerated            bench.cuda.bfloat16.jsonl
#    35  layers of stock PEFT and accelerated           bench.cuda.bfloat16.jsonl
#    35  one layer, float32 without TF32                bench.cuda.float32.jsonl
#     5  all ratios, and the targets                    summary.cuda.txt
#
# A step that fails or runs out of time is named, and the next one begins; none begins after 560 seconds. These eight
# files replace those of an earlier session. After each step what is there is copied to the folder OUT, where it is
# given, so that nothing done is lost. The exit status is 0 if no step failed, whatever the targets say. What the tuning
# finds is used by the steps after it and stays out of the user's cache; to ship it, copy selection.cuda.json's rows
# into triton_ops/selection.json.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
PYTHON="${PYTHON:-python3}"
RESULTS=benchmarks/results
FILES=(info.cuda.json validate.cuda.json tests.cuda.txt selection.cuda.json bench.cuda.bfloat16.jsonl
  bench.cuda.float32.jsonl products.cuda.bfloat16.json summary.cuda.txt)
LAYERS=8192x4096x4096,2048x4096x4096,512x4096x4096,8192x4096x14336,8192x5120x5120,8192x8192x8192,256x4096x4096
END=560
SECONDS=0
failed=()

"$PYTHON" - <<'PYTHON' || exit 2
import sys
import torch
sys.exit(0 if torch.cuda.is_available() else "no GPU is visible to torch: this script is for a machine with one")
PYTHON

WORK="$(mktemp -d)"
mkdir -p "$RESULTS"
for file in "${FILES[@]}"; do rm -f "$RESULTS/$file"; done
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export HYBRID_KERNELS_CACHE="$WORK/cache" TORCH_EXTENSIONS_DIR="$WORK/extensions"
mkdir -p "$HYBRID_KERNELS_CACHE"

keep() {
  [ -n "${OUT:-}" ] || return 0
  mkdir -p "$OUT"
  for file in "${FILES[@]}"; do
    if [ -f "$RESULTS/$file" ]; then cp "$RESULTS/$file" "$OUT/"; fi
  done
}

finish() {
  trap - EXIT
  printf '\n== summary, after %d seconds\n' "$SECONDS"
  {
    timeout -k 2 15 "$PYTHON" benchmarks/summary.py "$RESULTS"
    if [ "${#failed[@]}" -gt 0 ]; then printf 'step failed: %s\n' "${failed[@]}"; fi
  } | tee "$RESULTS/summary.cuda.txt"
  keep
  if [ -n "${boft:-}" ]; then kill "$boft" 2>/dev/null; fi
  rm -rf "$WORK"
  exit $((${#failed[@]} > 0))
}
trap finish EXIT
trap 'failed+=("stopped by a signal"); exit 1' INT TERM HUP

# step NAME SECONDS COMMAND...: the command within the seconds and within the session's end
step() {
  local name="$1" limit="$2" begin=$SECONDS status
  shift 2
  if [ "$limit" -gt $((END - SECONDS)) ]; then limit=$((END - SECONDS)); fi
  printf '\n== %s (at most %d s)\n' "$name" "$limit"
  if [ "$limit" -lt 5 ]; then
    echo "not begun: no time left"
    failed+=("$name: not begun, no time left")
    return 1
  fi
  # INT, so that pytest still lists what has failed.
  timeout -s INT -k 5 "$limit" "$@"
  status=$?
  case $status in
    0) ;;
    124 | 137) failed+=("$name: stopped after $limit s") ;;
    *) failed+=("$name: exit status $status") ;;
  esac
  printf -- '-- %s: %d s, exit status %d\n' "$name" $((SECONDS - begin)) "$status"
  keep
  return "$status"
}

# timeout runs commands, no functions: these two are exported for a shell of their own.
info() {
  "$PYTHON" -m hybrid_kernels info --json --dtype bfloat16 > "$RESULTS/info.cuda.json"
}
tests() {
  local workers=() count
  count=$(($(nproc 2>/dev/null || echo 4) - 2))
  if [ "$count" -gt 14 ]; then count=14; fi
  if [ "$count" -gt 1 ] && "$PYTHON" -c "import xdist" 2>/dev/null; then workers=(-n "$count"); fi
  # First what no other machine has checked: the CUDA kernels, and the gradients of the shipped tiles. test_aot.py needs no GPU. Most
  # of the time goes into compiling kernels, so there are more workers than the GPU has use for.
  "$PYTHON" -m pytest -v --tb=short -rfE --timeout 100 -p no:cacheprovider "${workers[@]}" \
    tests/csrc/test_cayley_cuda.py tests/triton_ops/test_shipped_tiles.py tests/triton_ops/test_[!as]*.py \
    tests/functional tests/ops tests/nn \
    tests/adapters/stack/test_precision.py tests/adapters/stack/test_memory.py tests/adapters/stack/test_generate.py \
    > "$WORK/tests.txt" 2>&1
}
export PYTHON RESULTS WORK
export -f info tests

# PEFT compiles a CUDA extension for BOFT when it first makes such a layer: meanwhile, or BOFT is left out.
timeout -k 2 110 "$PYTHON" - > "$WORK/boft.txt" 2>&1 <<'PYTHON' &
import sys
import time
from peft.tuners.boft.layer import get_fbd_cuda

begin = time.monotonic()
# A failure that takes long would be repeated for every layer; a quick one is PEFT's own fallback.
sys.exit(get_fbd_cuda() is None and time.monotonic() - begin > 5)
PYTHON
boft=$!

step "build the extension" 75 "$PYTHON" setup.py build_ext --inplace
step "what is installed" 20 bash -c info
step "operators against the reference" 45 "$PYTHON" -m hybrid_kernels validate --quick --device cuda \
  --json "$RESULTS/validate.cuda.json"
step "tests on the GPU" 90 bash -c tests
if [ -f "$WORK/tests.txt" ]; then
  # Without the lines of tests that begin or pass.
  grep -vE ' (PASSED|SKIPPED) |^tests/.*::.* $' "$WORK/tests.txt" | tail -c 4000000 > "$RESULTS/tests.cuda.txt"
  tail -n 40 "$RESULTS/tests.cuda.txt"
fi
step "tune" 75 "$PYTHON" -m hybrid_kernels bench tune --dtype bfloat16 --limit 65 \
  --output "$RESULTS/selection.cuda.json"
if [ -f "$RESULTS/selection.cuda.json" ]; then
  cp "$RESULTS/selection.cuda.json" "$HYBRID_KERNELS_CACHE/selection.json"
fi

METHODS=(LoRA DoRA HRA OFT BOFT)
without=()
if kill -0 "$boft" 2>/dev/null || ! wait "$boft"; then
  METHODS=("${METHODS[@]:0:4}")
  without=(--without "PEFT BOFT")
  printf '\nBOFT is left out: its CUDA extension was not built\n'
  tail -n 3 "$WORK/boft.txt"
fi
accelerated="$(printf ',accelerate-%s' "${METHODS[@]}")"

# measure NAME SECONDS DTYPE LIMIT ARGUMENTS...: a step of the benchmarks, that begins no case after LIMIT seconds
measure() {
  local name="$1" seconds="$2" dtype="$3" limit="$4"
  shift 4
  step "$name" "$seconds" "$PYTHON" -m hybrid_kernels bench --device cuda --dtype "$dtype" --limit "$limit" "$@" \
    --output "$RESULTS/bench.cuda.$dtype.jsonl"
}
layer() {
  measure "one layer, $1" "$2" "$1" $(($2 - 20)) --kind layers --case linear --shapes "$3" --rounds 30 --seconds-each 0.3 \
    "${without[@]}"
}
layer bfloat16 75 "$LAYERS"
measure "the Cayley transform" 25 float32 14 --op cayley_packed --pass forward,both --rounds 20 --seconds-each 0.1 \
  --no-compile
step "the single products" 30 "$PYTHON" benchmarks/products.py --device cuda --dtype bfloat16 \
  --shapes 8192x4096x4096,512x4096x4096 --limit 25 --output "$RESULTS/products.cuda.bfloat16.json"
measure "a training step" 45 bfloat16 25 --kind models --model llama-1b --case hybrid --batch 4 --tokens 1024 --rounds 10 \
  --seconds-each 2 --profile
measure "accelerate, step" 35 bfloat16 15 --kind models --model llama-medium --case "${accelerated#,}" --batch 2 \
  --tokens 1024 --rounds 15 --seconds-each 0.5
measure "accelerate, layers" 35 bfloat16 15 --kind layers --case "${accelerated#,}" \
  --shapes 512x4096x4096,4096x4096x4096,4096x4096x14336 --rounds 15 --seconds-each 0.5
layer float32 35 8192x4096x4096,2048x4096x4096,512x4096x4096
