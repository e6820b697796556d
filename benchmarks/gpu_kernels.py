"""Where the time of a workload goes on a GPU, its kernels by time, and on the host, for each backend.

python benchmarks/gpu_kernels.py ROW[,ROW] [--mode forward|train] [--contenders cuda,triton,tuned] [--top N]

With --only-run the calls alone, for another profiler to watch (ncu).
"""

from __future__ import annotations

import argparse

import torch
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile

from convgru_fused.bench import contenders, measure, program, workloads

Times = dict[str, tuple[float, float]]  # by name milliseconds and how often, of one call


def traced(run: program.Program, calls: int, activities: list[ProfilerActivity]) -> EventList:
    with profile(activities=activities) as trace:
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
    return trace.key_averages()


def by_kernel(run: program.Program, calls: int) -> Times:
    events = traced(run, calls, [ProfilerActivity.CUDA])
    return {
        event.key: (event.self_device_time_total * 1e-3 / calls, event.count / calls)
        for event in events
        if event.self_device_time_total
    }


def by_operation(run: program.Program, calls: int) -> Times:
    """Of what the host does; what it calls in turn counts there. Slower than without a profiler."""
    events = traced(run, calls, [ProfilerActivity.CPU, ProfilerActivity.CUDA])
    return {
        event.key: (event.self_cpu_time_total * 1e-3 / calls, event.count / calls)
        for event in events
        if event.self_cpu_time_total
    }


def milliseconds(run: program.Program, calls: int) -> float:
    """Of one call, on the device's clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=lambda text: text.split(","))
    parser.add_argument("--mode", choices=workloads.MODES, default="forward")
    parser.add_argument(
        "--contenders", type=lambda text: text.split(","), default=["cuda", "triton", "tuned"]
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--top", type=int, default=8)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--only-run", action="store_true")
    args = parser.parse_args()
    peers = [name for name in args.contenders if name in contenders.PEERS]
    ours = [name for name in args.contenders if name not in contenders.PEERS]
    settings = measure.Settings(
        torch.device("cuda"),
        getattr(torch, args.dtype),
        modes=(args.mode,),
        peers=tuple(peers),
        backends=tuple(ours),
    )
    with measure.prepared(settings):
        for workload in workloads.select(args.rows):
            data = workload.make_inputs(settings.device, settings.dtype)
            job = program.Job(workload, args.mode, settings.variant, (data,))
            for contender in settings.contenders():
                show(workload, contender.name, contender.build(job), args)


def show(workload: workloads.Workload, name: str, run: program.Program, args: argparse.Namespace) -> None:
    """Runs a program; prints its kernels and what the host does, those with most time first."""
    run.activate()
    for _ in range(3):
        run()
    if args.only_run:
        return
    kernels, operations = by_kernel(run, args.calls), by_operation(run, args.calls)
    total = milliseconds(run, args.calls)
    inside = sum(ms for ms, _ in kernels.values())
    print(f"\n{workload.name} {args.mode}, {name}: {total:.3f} ms, of them in kernels {inside:.3f} ms")
    show_times(kernels, args.top)
    print(" host, under the profiler:")
    show_times(operations, args.top)
    run.release()


def show_times(times: Times, top: int) -> None:
    for name, (ms, count) in sorted(times.items(), key=lambda item: -item[1][0])[:top]:
        print(f"  {ms:9.3f} ms {count:6.0f}x {1e3 * ms / count:9.1f} us  {name[:100]}")


if __name__ == "__main__":
    main()
