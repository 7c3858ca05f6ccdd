"""What a training step costs, and how near it comes to what the device can do: `python -m gen_jax bench CONFIG...`.

`measure` times the step of a config, `cost` counts its operations and `closed_form` holds a formula against them,
`device` measures what the device can do, `trace` says where the time goes, `estimate` how many devices would pay off,
`report` prints and compares, and `run` is the command.
"""
