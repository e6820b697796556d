#!/usr/bin/env bash
# Everything that only a GPU can show, in stages; each stage alone by its name. Small files in $OUT.
#   benchmarks/gpu_check.sh [build] [test] [errors] [sanitize] [bench] [triton] [profile] [ncu] [wgmma] [ways] [tune] [compiled] [compare]
# No stage: all but the last five, which take long. Needs Python with a CUDA build of torch >= 2.11, nvcc, a GPU;
# no network, nothing installed.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu_check}
mkdir -p "$OUT"
export CONVGRU_FUSED_CUDA=1 PYTHONPATH=$PWD
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$($PYTHON -c \
  'import torch; print("%d.%d" % torch.cuda.get_device_capability())')}
LARGE=gru_rcn_pool2,gru_rcn_pool3,gru_rcn_pool4,gru_rcn_pool5
ALL=$LARGE,gru_rcn_fc7,gru_rcn_stream,raft_sep,droid_update,matting_hd,matting_coarse,nowcast_fine,dgmr_top,long_small,tiny
PYTEST="$PYTHON -m pytest -q -p no:cacheprovider"
PARALLEL=$($PYTHON -c 'import xdist' 2>/dev/null && echo "-n $(( ($(nproc) + 1) / 2 ))")
bench() { $PYTHON -m convgru_fused bench --device cuda --dtype bfloat16 --video none --plots "$OUT/plots" "$@"; }

run_build() { MAX_JOBS=${MAX_JOBS:-$(nproc)} $PYTHON setup.py --quiet build_ext --inplace; }
run_test() { $PYTEST $PARALLEL tests/gpu; }
# Of PyTorch and of the CUDA backend, against float64.
run_errors() { $PYTHON -m convgru_fused.testing cuda eager cuda; }
# Some cases of every kernel of the CUDA backend, small enough; each tool and type beside the others. Under
# racecheck some of cuDNN's kernels end in an "Internal Sanitizer Error", so there PyTorch convolves without it.
run_sanitize() {
  local tool dtype process processes=() failed=0
  for tool in memcheck racecheck synccheck; do
    for dtype in float32 float64 bfloat16 float16; do
      compute-sanitizer --tool $tool --error-exitcode 1 --kernel-name kns=convgru $PYTHON -c \
        "import sys, pytest, torch; torch.backends.cudnn.enabled = '$tool' != 'racecheck'; sys.exit(pytest.main(sys.argv[1:]))" \
        -q -p no:cacheprovider tests/gpu \
        -k "torch.$dtype and (cuda and kept and not reverse and (one-step-hx or channels-of-16-1x5 or everything) or \
            warpgroups and 31)" \
        >"$OUT/$tool-$dtype.log" 2>&1 &
      processes+=($!)
    done
  done
  for process in "${processes[@]}"; do wait "$process" || failed=1; done
  grep -H -E "passed|failed|SUMMARY" "$OUT"/{memcheck,racecheck,synccheck}-*.log
  return $failed
}
run_bench() {
  bench --rows $ALL --backend cuda --graphs --peers eager,graphed --repetitions 6 --json "$OUT/bfloat16.json"
}
run_triton() {
  $PYTHON benchmarks/gpu_warm.py bfloat16 4 $LARGE
  bench --rows $LARGE --backend triton --peers graphed --repetitions 6 --json "$OUT/bfloat16-triton.json"
}
run_profile() {
  local mode
  for mode in forward train; do
    $PYTHON benchmarks/gpu_kernels.py gru_rcn_pool3,gru_rcn_stream,matting_coarse,tiny --mode $mode --contenders cuda
  done
}
# What kernels of a sequence, and one of a convolution, spend their cycles on.
run_ncu() {
  local of
  for of in sequence_kernel:gru_rcn_stream sequence_kernel:matting_coarse convolve_window_kernel:raft_sep; do
    ncu --set full --kernel-name regex:${of%:*} --launch-count 1 --clock-control none $PYTHON benchmarks/gpu_kernels.py \
      ${of#*:} --contenders cuda --only-run
  done
}
# The CUDA backend once more with convolutions by warpgroups where they suit.
run_wgmma() {
  CONVGRU_FUSED_WGMMA=1 bench --rows $ALL --backend cuda --graphs --peers graphed --repetitions 6 \
    --json "$OUT/bfloat16-wgmma.json"
}
# The CUDA backend once more by the ways that are measured first; $OUT/cuda_ways.txt says which they are.
run_ways() {
  CONVGRU_FUSED_AUTOTUNE=1 CONVGRU_FUSED_CACHE="$OUT" bench --rows $ALL \
    --backend cuda --graphs --peers graphed --repetitions 6 --json "$OUT/bfloat16-ways.json"
}
# The Triton backend once more with tiles that are measured first; the tiles are left for convgru_fused/triton/tiles.py.
run_tune() {
  CONVGRU_FUSED_AUTOTUNE=1 CONVGRU_FUSED_CACHE="$OUT" bench --rows $LARGE,gru_rcn_stream \
    --backend triton --peers graphed --json "$OUT/bfloat16-tuned.json"
}
run_compiled() {
  bench --rows gru_rcn_pool4,gru_rcn_stream,droid_update --backend cuda --peers tuned,compiled,graphed \
    --json "$OUT/bfloat16-compiled.json"
}
# The comparison of the video models; put an earlier call's comparison.json in $OUT/compare to go on from there.
run_compare() {
  $PYTHON -m convgru_fused compare --preset standard --device cuda --jobs "$(nproc)" --minutes 7 --out "$OUT/compare"
}

status=0
for stage in ${@:-build test errors sanitize bench triton profile ncu}; do
  start=$SECONDS
  if ! declare -F "run_$stage" >/dev/null; then
    echo "unknown stage $stage" >&2
    exit 2
  fi
  "run_$stage" >"$OUT/$stage.log" 2>&1
  code=$?
  [[ $code == 0 ]] || status=1
  echo "$stage: exit $code, $((SECONDS - start)) s"
  tail -n 15 "$OUT/$stage.log"
done
exit $status
