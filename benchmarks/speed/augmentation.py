"""Random affine maps of images against Keras' loop over single images: the same ranges, 28x28 and 64x64 in color.

python -m benchmarks.speed.augmentation          (needs the `bench` extra)

The result of the same draws differs by less than 1e-5 (tests/data/test_geometry.py).
"""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Report, compiled, in_turns
from gen_jax.data.geometry import geometric

MANY = 1000


def main() -> None:
    os.environ["KERAS_BACKEND"] = "jax"  # of which the loop uses nothing: it is NumPy and SciPy
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    report = Report("augmentation")
    ranges = {"rotation_range": 10, "width_shift_range": 0.1, "height_shift_range": 0.1, "zoom_range": 0.1}
    theirs, ours = ImageDataGenerator(**ranges), geometric(10, 0.1, 0.1)
    for shape in ((28, 28, 1), (64, 64, 3)):
        x = np.random.default_rng(0).uniform(size=(MANY, *shape)).astype(np.float32)
        program, compiling = compiled(lambda x, key: ours.apply({"x": x}, key)["x"], jnp.asarray(x), jax.random.key(0))
        on_device = jnp.asarray(x)
        found = in_turns(
            {
                "gen_jax": lambda program=program, x=on_device: program(x, jax.random.key(0)),
                "Keras": lambda x=x: [theirs.random_transform(image) for image in x],
            }
        )
        size = "x".join(map(str, shape))
        report.row(f"{MANY:,} images of {size}", found["gen_jax"], "Keras", found["Keras"], ">= 10", "1e-5", compiling)
    report.finish()


if __name__ == "__main__":
    main()
