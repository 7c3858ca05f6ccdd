"""`python -m gen_jax`: the commands of `gen_jax.cli`."""

from gen_jax.cli.main import main
from gen_jax.errors import exits

if __name__ == "__main__":
    exits(main)
