#!/usr/bin/env bash
# Everything that only a GPU can show, in stages; each stage alone by its name. Small files in $OUT.
#   benchmarks/gpu_check.sh [build] [test] [sanitize] [bench] [tune] [profile]      no stage: all of them
# Needs Python with a CUDA build of torch >= 2.11, nvcc, a GPU; no network, nothing installed.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu_check}
mkdir -p "$OUT"
export CONVGRU_FUSED_CUDA=1 PYTHONPATH=$PWD
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$($PYTHON -c \
  'import torch; print("%d.%d" % torch.cuda.get_device_capability())')}
# Some cases of every kernel, small enough for the sanitizer.
SMALL=(tests/gpu -k "one-step or channels-of-16 or everything")

build() { MAX_JOBS=${MAX_JOBS:-$(nproc)} $PYTHON setup.py --quiet build_ext --inplace; }
run_tests() { $PYTHON -m pytest -q -p no:cacheprovider tests/gpu; }
sanitize() {
  local tool failed=0
  for tool in memcheck racecheck synccheck; do
    echo "$tool:"
    compute-sanitizer --tool $tool --error-exitcode 1 --kernel-name regex:"convgru|_kernel" \
      $PYTHON -m pytest -q -p no:cacheprovider "${SMALL[@]}" | tail -3
    [[ ${PIPESTATUS[0]} == 0 ]] || failed=1
  done
  return $failed
}
# The Triton backend once more with tiles that are measured first; the tiles are left for convgru_fused/triton/tiles.py.
tune() {
  CONVGRU_FUSED_AUTOTUNE=1 CONVGRU_FUSED_CACHE="$OUT" $PYTHON -m convgru_fused bench --device cuda \
    --dtype bfloat16 --rows gru_rcn_pool2,gru_rcn_pool3,gru_rcn_pool4,gru_rcn_stream --video none \
    --backend triton --peers tuned --json "$OUT/bfloat16-tuned.json"
}
bench() {
  $PYTHON -m convgru_fused bench --device cuda --dtype bfloat16 --suite full --video none \
    --backend cuda,triton --json "$OUT/bfloat16.json" --plots "$OUT/plots"
}
profile() {
  ncu --set basic --kernel-name regex:convolve_kernel --launch-count 4 --csv \
    $PYTHON -m convgru_fused bench --device cuda --dtype bfloat16 --rows gru_rcn_pool3 --video none \
    --backend cuda --mode forward
}

status=0
for stage in "${@:-build test sanitize bench tune profile}"; do
  for name in $stage; do
    start=$SECONDS
    case $name in
      test) run_tests ;;
      build | sanitize | bench | tune | profile) $name ;;
      *) echo "unknown stage $name" >&2; exit 2 ;;
    esac >"$OUT/$name.log" 2>&1
    code=$?
    [[ $code == 0 ]] || status=1
    echo "$name: exit $code, $((SECONDS - start)) s"
    tail -15 "$OUT/$name.log"
  done
done
exit $status
