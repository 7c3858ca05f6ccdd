"""`python -m gen_jax`, or `gen_jax` once installed: the commands of `gen_jax.cli`."""

import sys

from gen_jax.errors import exits


def run() -> None:
    """Runs the command line and exits with its code."""
    if sys.argv[1:2] == ["study"]:  # the server of a study needs no JAX, and so a quarter of the memory
        from gen_jax.cli.study import main
    else:
        from gen_jax.cli.main import main
    exits(main)


if __name__ == "__main__":
    run()
