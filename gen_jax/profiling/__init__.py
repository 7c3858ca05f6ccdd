"""Cost of a training step, and its performance relative to the device's peak: `python -m gen_jax bench CONFIG...`.

`measure` times the step of a config, `cost` counts its operations and `flops` computes them analytically, `device`
measures the device's peaks, `trace` breaks down the time, `projection` estimates scaling over many devices, `report`
and `charts` present and compare, and `bench` is the command.
"""
