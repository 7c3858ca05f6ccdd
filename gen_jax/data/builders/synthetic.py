"""Small sets with known structure, generated from a fixed seed: the classics of clustering, flows and mode collapse."""

import numpy as np
from sklearn.datasets import make_blobs, make_moons

from gen_jax.data.builders.arrays import ArrayBuilder, label, split_arrays, vector
from gen_jax.data.modes import grid, ring

__all__ = ["Banana", "Blobs", "Checkerboard", "GaussianHmm", "Grid25", "Plane", "Ring8", "Rings", "Spirals", "TwoMoons"]


class Plane(ArrayBuilder):
    """10,000 points in the plane with the component each came from: 8,000 / 1,000 / 1,000."""

    CLASSES = 1

    def features(self):
        return {"x": vector(2), "label": label(self.CLASSES)}

    def arrays(self, downloads):
        x, labels = self.points(np.random.default_rng(0), 10_000)
        return split_arrays({"x": x.astype(np.float32), "label": labels}, train=8000, validation=1000)

    def points(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError


class Blobs(ArrayBuilder):
    """Three Gaussian blobs of standard deviation 1, 2 and 0.5 in the plane: 1,000 / 250 / 250 points."""

    def features(self):
        return {"x": vector(2), "label": label(3)}

    def arrays(self, downloads):
        x, labels = make_blobs(n_samples=1500, centers=3, cluster_std=[1.0, 2.0, 0.5], random_state=42)
        return split_arrays({"x": x.astype(np.float32), "label": labels}, train=1000, validation=250)


class TwoMoons(Plane):
    """Two interleaved half circles with noise 0.05."""

    CLASSES = 2

    def points(self, rng, n):
        return make_moons(n, noise=0.05, random_state=int(rng.integers(2**31)))


class Ring8(Plane):
    """Eight Gaussians of standard deviation 0.01 on the unit circle (as in VEEGAN, Srivastava et al. 2017)."""

    CLASSES = 8

    def points(self, rng, n):
        labels = rng.integers(8, size=n)
        return ring()[labels] + 0.01 * rng.normal(size=(n, 2)), labels


class Grid25(Plane):
    """Twenty-five Gaussians of standard deviation 0.05 on a 5x5 grid of spacing 2 (VEEGAN, Srivastava et al. 2017)."""

    CLASSES = 25

    def points(self, rng, n):
        labels = rng.integers(25, size=n)
        return grid()[labels] + 0.05 * rng.normal(size=(n, 2)), labels


class Spirals(Plane):
    """Two intertwined spirals of one and a half turns with noise 0.1."""

    CLASSES = 2

    def points(self, rng, n):
        labels = rng.integers(2, size=n)
        t = 3 * np.pi * np.sqrt(rng.uniform(size=n))
        arm = np.where(labels == 0, 1.0, -1.0)[:, None] * np.stack([-np.cos(t) * t, np.sin(t) * t], axis=1)
        return arm / 3 + 0.1 * rng.normal(size=(n, 2)), labels


class Checkerboard(Plane):
    """The uniform distribution on the dark squares of a 4x4 board over [-4, 4]^2."""

    CLASSES = 8

    def points(self, rng, n):
        labels = rng.integers(8, size=n)
        row, column = labels // 2, 2 * (labels % 2) + (labels // 2) % 2
        return 2 * np.stack([column, row], axis=1) - 4 + 2 * rng.uniform(size=(n, 2)), labels


class Rings(Plane):
    """Two concentric circles of radius 1 and 2 with noise 0.08."""

    CLASSES = 2

    def points(self, rng, n):
        labels = rng.integers(2, size=n)
        angle = 2 * np.pi * rng.uniform(size=n)
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return (1 + labels)[:, None] * circle + 0.08 * rng.normal(size=(n, 2)), labels


class Banana(Plane):
    """A bent normal: x ~ N(0, 1) and y ~ N(x^2 / 2 - 1, 0.3^2); see `gen_jax.data.densities.banana`."""

    def points(self, rng, n):
        x = rng.normal(size=n)
        y = 0.5 * x**2 - 1 + 0.3 * rng.normal(size=n)
        return np.stack([x, y], axis=1), np.zeros(n, int)


class GaussianHmm(ArrayBuilder):
    """Sequences of 100 points in the plane from a hidden Markov model with three states: 200 / 50 / 50.

    Initial and transition probabilities and means below; unit covariances. "state" is the hidden path.
    """

    INITIAL = np.array([0.6, 0.3, 0.1])
    TRANSITION = np.array([[0.7, 0.2, 0.1], [0.3, 0.5, 0.2], [0.2, 0.2, 0.6]])
    MEANS = np.array([[0.0, 0.0], [3.0, -3.0], [-3.0, 3.0]])

    def features(self):
        return {"x": vector(100, 2), "state": vector(100, dtype=np.int32)}

    def arrays(self, downloads):
        rng = np.random.default_rng(0)
        path = np.empty((300, 100), np.int32)
        for t in range(100):
            before = np.broadcast_to(self.INITIAL, (300, 3)) if t == 0 else self.TRANSITION[path[:, t - 1]]
            path[:, t] = (rng.uniform(size=(300, 1)) > before.cumsum(axis=1)[:, :2]).sum(axis=1)
        x = self.MEANS[path] + rng.normal(size=(300, 100, 2))
        return split_arrays({"x": x.astype(np.float32), "state": path}, train=200, validation=50)
