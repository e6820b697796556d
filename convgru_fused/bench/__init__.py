"""The benchmark behind `python -m convgru_fused bench`; docs/benchmarks.md has the protocol and the file
format.

workloads (what is run) -> peers, contenders (by whom) -> check (is it right) -> timing, measure (how fast) ->
results (on disk) -> report, plots (for people). machine describes where it ran; video is the same on a real
clip; command wires it all to a command line. Nothing here is imported by `import convgru_fused`.
"""
