"""Image files for tests."""

import io

import numpy as np
from PIL import Image


def noise(rng, height, width, channels=3):
    a = rng.integers(0, 256, (height, width, channels), np.uint8)
    return a if channels > 1 else a[..., 0]


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def encoded(image, kind="PNG", **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def folder_of(path, count=40, size=(8, 12), classes=("cat", "dog"), seed=0):
    """A folder of distinct images, in class subfolders if there are classes."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        below = path / classes[i % len(classes)] if classes else path
        write(below / f"{i:03d}.png", noise(rng, *size))
    return path
