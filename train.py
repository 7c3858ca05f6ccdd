"""Trains a config, or resumes it:  python train.py configs/vae/vae_digits.py [--knob value ...]"""

import sys

import gen_jax  # noqa: F401  (first, to know when the process began)
from gen_jax.errors import exits

USAGE = """usage: python train.py CONFIG [--knob value ...]

Trains an experiment and leaves checkpoints, metrics, pictures and an evaluation in a working directory; the same
command again resumes it. CONFIG is a config file or the name of one below configs/, such as vae_digits.
`python train.py CONFIG --help` lists the knobs of a config, `python -m gen_jax configs` lists the configs."""


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    from gen_jax.cli.main import train_main

    train_main(arguments)


if __name__ == "__main__":
    exits(main)
