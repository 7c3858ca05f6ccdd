"""Trains in forked children that are killed at random instants; started by test_reliability.py.

    python zygote.py WORKDIR KILLS SEED

JAX is imported once and its backend is first used in the children, so that a kill costs a second and not ten. Prints
one line per kill: the step that a fresh process could restore.
"""

import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

from orbax.checkpoint import v1  # noqa: F401  (imported before the children need it)

from gen_jax.compilation import use_compilation_cache
from gen_jax.configs import load
from gen_jax.run import Run

TINY = Path(__file__).parent / "configs" / "tiny.py"
STEPS = int(os.environ.get("STEPS", "100000"))


def forked(work) -> int:
    """The process id of a child that runs `work` and exits."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    return child


def train(workdir: Path) -> None:
    use_compilation_cache()
    Run.prepare(load(TINY, {"steps": STEPS}), workdir, devices=1).train(bar=False)


def verify(workdir: Path) -> None:
    """Restores the newest checkpoint, which checks its SHA-256."""
    with warnings.catch_warnings(action="error"):  # a checkpoint set aside would be one
        state = Run.prepare(load(TINY, {"steps": STEPS}), workdir, devices=1).state()
    print(int(state.step), flush=True)


def main(workdir: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    saved = lambda: {int(f.name) for f in (workdir / "checkpoints").glob("[0-9]*") if f.name.isdigit()}
    for i in range(kills):
        before = max(saved(), default=0)
        child = forked(lambda: train(workdir))
        if i % 2 == 0:  # some time after it has saved something new, so that the run gets on
            begun = time.time()
            while max(saved(), default=0) <= before:
                if time.time() - begun > 120 or os.waitpid(child, os.WNOHANG)[0]:
                    sys.exit("no new checkpoint appeared")
                time.sleep(0.005)
            time.sleep(rng.uniform(0.0, 0.5))
        else:  # or at any time from its first instant on: starting, restoring, compiling, training
            time.sleep(rng.uniform(0.0, 2.0))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        _, status = os.waitpid(forked(lambda: verify(workdir)), 0)
        if status:
            sys.exit("the newest checkpoint could not be restored")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
