"""Tables as shipped with scikit-learn."""

import numpy as np
from sklearn.datasets import load_diabetes

from gen_jax.data.builders.arrays import ArrayBuilder, split_arrays, vector

__all__ = ["Diabetes"]


class Diabetes(ArrayBuilder):
    """442 diabetes patients: age, sex, body mass index, blood pressure, six blood values, and progression in a year.

    From Efron, Hastie, Johnstone & Tibshirani 2004. Split by a fixed permutation: 302 for training, 60 for validation,
    80 for test.
    """

    COLUMNS = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6", "progression")
    CATEGORIES = ((), ("1", "2"), *[()] * 9)

    def features(self):
        return {"x": vector(len(self.COLUMNS))}

    def arrays(self, downloads):
        data = load_diabetes(scaled=False)
        x = np.column_stack([data.data, data.target]).astype(np.float32)
        x[:, 1] -= 1  # the codes of the categories 1 and 2
        return split_arrays({"x": x[np.random.default_rng(0).permutation(len(x))]}, 302, 60)
