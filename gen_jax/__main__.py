"""`python -m gen_jax`, or `gen_jax` once installed: the commands of `gen_jax.cli`."""

from gen_jax.cli.main import main
from gen_jax.errors import exits


def run() -> None:
    """Runs the command line and exits with its code."""
    exits(main)


if __name__ == "__main__":
    run()
