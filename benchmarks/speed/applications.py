"""Applications against the libraries the field uses: random affine maps of images, and imputation of a table.

python -m benchmarks.speed.applications [--only Keras]          (needs the `bench` extra)

Keras changes one image after the other; the result of the same draws differs by less than 1e-5
(tests/data/test_geometry.py). scikit-learn's IterativeImputer and mixtures, fitted by exact EM, fill a table of 10,000
rows and 20 correlated columns, a third of whose cells are missing; both are fitted anew.
"""

from __future__ import annotations

import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Report, compiled, in_turns
from gen_jax.data.geometry import geometric
from gen_jax.estimators import GaussianMixture, Imputer

MANY = 1000  # images
ROWS, COLUMNS = 10_000, 20


def images(report: Report) -> None:
    os.environ["KERAS_BACKEND"] = "jax"  # of which the loop uses nothing: it is NumPy and SciPy
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

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
        what = f"rotation, shift and zoom of {MANY:,} images of {'x'.join(map(str, shape))}"
        why = "XLA reads single pixels, two nanoseconds each, where SciPy follows the rows of an image"
        report.row(what, found["gen_jax"], "Keras", found["Keras"], ">= 10", "1e-5", compiling, why)


def tables(report: Report) -> None:
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401  # it is found by being imported
    from sklearn.impute import IterativeImputer

    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, COLUMNS)) @ rng.normal(size=(COLUMNS, COLUMNS))
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    missing = rng.uniform(size=x.shape) < 1 / 3
    holes = np.where(missing, np.nan, x)
    error = lambda filled: float(np.sqrt(np.mean((filled - x)[missing] ** 2)))
    for components in (1, 5):
        ours, theirs = Imputer(GaussianMixture(components, reg_covar=1e-6, random_state=0)), IterativeImputer()
        with warnings.catch_warnings(action="ignore"):
            errors = [error(one.fit_transform(holes)) for one in (ours, theirs)]
            found = in_turns(
                {
                    "gen_jax": lambda ours=ours: ours.fit_transform(holes),
                    "scikit-learn": lambda theirs=theirs: theirs.fit_transform(holes),
                },
                rounds=3,
            )
        report.row(
            f"imputation of {ROWS:,} x {COLUMNS} cells by {components} components",
            found["gen_jax"],
            "scikit-learn",
            found["scikit-learn"],
            ">= 5",
            f"RMSE {errors[0]:.3f}, {errors[1]:.3f}",
            why="exact EM inverts the covariance of what is observed for each row and component at each iteration; "
            "the rival regresses each column on filled ones, all rows at once",
        )


def main() -> None:
    report = Report("applications")
    for rival, run in (("Keras", images), ("scikit-learn", tables)):
        if report.options.only in rival:
            run(report)
    report.finish()


if __name__ == "__main__":
    main()
