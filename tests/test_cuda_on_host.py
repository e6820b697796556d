"""The harness that runs CUDA kernels on the CPU (tests/cuda_on_host): right kernels pass for every seed,
planted faults are found. Needs a C++ compiler, no GPU and no CUDA toolkit."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "cuda_on_host" / "harness_test.cpp"
COMPILER = os.environ.get("CXX", "g++")
SEEDS = range(5)

RIGHT = (
    "barrier",
    "copy",
    "flag",
    "grid",
    "grid-counter",
    "product-bfloat16",
    "product-float16",
    "product-tf32",
    "product-transposed",
    "read",
    "shared",
    "shuffle",
    "sum",
    "warpgroup",
    "write",
)
CRASH = ""  # nothing is said: the process ends at the guard
FAULTS = {
    "barrier-at-two-places": "while others wait at __syncthreads at",
    "copy-misaligned": "cp.async: an address is not a multiple of the size",
    "copy-pending": "returns while copies by cp.async are under way",
    "copy-without-wait": "wrong copy",
    "flag-never-set": "deadlock: 1 threads wait in spin_until at",
    "grid-counter-not-zero": "sync_grid: the counter did not start at zero",
    "grid-not-cooperative": "a barrier of the grid in a launch that is not cooperative",
    "grid-one-barrier-more": "deadlock: 32 threads wait in sync_grid at",
    "read-out-of-bounds": CRASH,
    "shared-out-of-bounds": CRASH,
    "sum-without-barrier": "wrong sum",
    "warpgroup-beyond": "wgmma: reads beyond shared memory",
    "warpgroup-factors-change": "wrong product",
    "warpgroup-misaligned": "cp.async.bulk: an address or the size is not a multiple of 16",
    "warpgroup-weights-change": "wrong product",
    "warpgroup-without-commit": "returns while products are under way",
    "warpgroup-without-copy-wait": "returns while bulk copies are under way",
    "warpgroup-without-expect": "mbarrier: copied other bytes than it expected",
    "warpgroup-without-fence": "wgmma: without wgmma.fence before it",
    "warpgroup-without-init": "mbarrier: used before it is initialised",
    "warpgroup-without-proxy-fence": "cp.async.bulk: no fence.proxy.async after mbarrier.init",
    "warpgroup-without-wait": "wrong product",
    "warpgroup-wrong-round": "returns while bulk copies are under way",
    "write-not-all": "an output was not written",
}
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")


@pytest.fixture(scope="module", params=["plain", "sanitized"])
def harness(request, tmp_path_factory):
    """Runs a case with a seed; `sanitized`: whether AddressSanitizer looks on."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no {COMPILER}")
    program = tmp_path_factory.mktemp("cuda_on_host") / "harness_test"
    flags = SANITIZERS if request.param == "sanitized" else ()
    subprocess.run([COMPILER, "-std=c++20", "-O1", "-g", *flags, SOURCE, "-o", program], check=True)

    def run(*arguments):
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
        return subprocess.run(
            [program, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=60
        )

    run.sanitized = request.param == "sanitized"
    return run


def test_every_case_is_expected_to_do_something(harness):
    assert sorted(harness().stdout.split()) == sorted([*RIGHT, *FAULTS])


@pytest.mark.parametrize("case", RIGHT)
def test_a_right_kernel_passes_for_every_seed(harness, case):
    for seed in SEEDS:
        result = harness(case, seed)
        assert result.returncode == 0, (seed, result.stdout, result.stderr)


@pytest.mark.parametrize("case", FAULTS)
def test_a_planted_fault_is_found(harness, case):
    results = [harness(case, seed) for seed in SEEDS]
    if FAULTS[case] == CRASH:
        for result in results:
            assert "AddressSanitizer" in result.stderr if harness.sanitized else result.returncode < 0
    else:
        found = [result for result in results if result.returncode == 1 and FAULTS[case] in result.stdout]
        assert found, results
