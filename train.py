"""Trains a config, or resumes it:  python train.py configs/vae_digits.py [--knob value ...]"""

import sys

import gen_jax  # noqa: F401  (first, to know when the process began)
from gen_jax.errors import UserError, exits

USAGE = """usage: python train.py configs/NAME.py [--knob value ...]

Trains the experiment of a config file and leaves checkpoints, metrics, pictures and an evaluation in a working
directory; the same command again resumes it. `python train.py configs/NAME.py --help` lists the knobs of a config,
`python -m gen_jax configs` lists the configs."""


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    if arguments[0].startswith("-"):
        raise UserError(f"the config file comes first: python train.py configs/NAME.py {' '.join(arguments)}")
    from gen_jax.command import train

    train(arguments[0], arguments[1:])


if __name__ == "__main__":
    exits(main)
