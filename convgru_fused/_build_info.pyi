def compiler() -> str: ...
def cpu_capability() -> str: ...
def cpu_capabilities() -> list[str]: ...
def thread_round_trip() -> float: ...
def cpu_plan(
    T: int,
    N: int,
    C: int,
    K: int,
    H: int,
    W: int,
    kernel_h: int,
    kernel_w: int,
    cudnn: bool,
    itemsize: int,
    fast: bool,
    threads: int,
) -> list[tuple[str, int, str, int, int, int, int, int]]: ...
