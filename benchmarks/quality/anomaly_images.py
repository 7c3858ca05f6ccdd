"""Anomalies among images: VAEs of MNIST and of Fashion-MNIST, told apart from the other set, in both directions.

python -m benchmarks.quality.anomaly_images [--steps 2000] [--images 1000]

Deep likelihoods can prefer foreign images that are simpler (Nalisnick et al. 2019, arXiv:1810.09136): each score of the
project is shown beside `size`, the bits of the PNG file alone, which uses no model. Both sets must be prepared
(`python -m gen_jax data prepare NAME --manual-dir DIR`).
"""

from __future__ import annotations

import argparse
import sys

import jax
import numpy as np

from benchmarks.harness import Report
from gen_jax import descent, fit, load
from gen_jax.applications.anomaly.detection import rank
from gen_jax.applications.anomaly.scores import Scored, scorers
from gen_jax.data.source import Resident
from gen_jax.evaluation.metric import Split
from gen_jax.evaluation.samples.features import raw
from gen_jax.models.common.likelihoods import DiscretizedLogistic
from gen_jax.models.common.networks import ConvDecoder, ConvEncoder
from gen_jax.models.vae import VAE
from gen_jax.optimizers import adamw

SETS = ("mnist", "fashion_mnist")
LATENT = 16
FEW = 100  # images of each set for `regret`, which fits a posterior to each


def trained(name: str, steps: int) -> Scored:
    """A convolutional VAE of a set whose likelihood is of the 256 gray levels."""
    data, channels, likelihood = load(name), (16, 32), DiscretizedLogistic(256)
    decoder = ConvDecoder((28, 28), (32, 32), likelihood.channels)
    model = VAE(ConvEncoder(channels, 128, 2 * LATENT), decoder, likelihood, LATENT)
    training = {"x": data["train"]["x"]}
    state = fit(descent(model, {"vae": adamw(2e-3, steps)}), Resident(training, 128), steps, chunk=20)
    split = Split("train", training, training=training, data=name, levels=256, info=data.info)
    return Scored(model, state, split, encode=raw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--images", type=int, default=1000)
    chosen = parser.parse_args()
    sys.argv = sys.argv[:1]  # the report has options of its own
    report, n = Report("anomaly_images"), chosen.images
    for name, other in (SETS, SETS[::-1]):
        scored = trained(name, chosen.steps)
        images = {one: np.asarray(load(one)["test"]["x"][:n]) for one in (name, other)}
        for score, scorer in scorers(scored).items():
            count = min(n, FEW) if score == "regret" else n
            parts = [scored.training._replace(name="test", arrays={"x": x[:count]}) for x in images.values()]
            found = rank(np.concatenate([scorer(part) for part in parts]), np.arange(2 * count) >= count)
            low, high = found.roc_auc_range
            label = f"{name} against {other}: {score} ({count} of each, 95 % {low:.3f} to {high:.3f})"
            report.fact(label, found.roc_auc, "AUROC")
        jax.clear_caches()
    report.finish()


if __name__ == "__main__":
    main()
