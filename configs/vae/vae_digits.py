"""VAE on the embedded 8x8 digits (Kingma & Welling 2013), every part of it a knob.

python train.py configs/vae/vae_digits.py
python train.py configs/vae/vae_digits.py --prior vamp --bound iwae --samples 5

Results (116 s, 1 x cpu, 2 cores, 2026-11-22): likelihood ≤ 1.859 ± 0.02 bits/dim; frechet_distance@digits_cnn
15.25 ± 0.5 features^2; classes 10 of 10; class_kl 0.01491 nats; confidence 0.8997 ± 0.002 share;
latent_accuracy 0.8667 ± 0.03 share; active_units 8 of 16; reconstruction_rmse 1.686 ± 0.03 units of x.
"""

from functools import partial
from typing import Literal

import jax.numpy as jnp

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.checkpoint import Best
from gen_jax.data import load
from gen_jax.evaluation import active_units, elbo, iwae_50, latent_accuracy, reconstruction_error
from gen_jax.experiment import Experiment
from gen_jax.models.common import likelihoods
from gen_jax.models.common.networks import MLP, ConvDecoder, ConvEncoder, ResidualDecoder, ResidualEncoder, pyramid
from gen_jax.models.vae import VAE, bounds, posteriors, priors
from gen_jax.optimizers import adamw

ANNEALING = {"none": lambda beta, steps: beta, "linear": bounds.linear, "cyclical": bounds.cyclical}
LIKELIHOODS = {
    "logistic": likelihoods.DiscretizedLogistic,
    "logistic_mixture": partial(likelihoods.DiscretizedLogistic, components=5),
    "categorical": likelihoods.Categorical,
}
PRIORS = {"normal": priors.StandardNormal(), "mixture": priors.GaussianMixture(20), "vamp": priors.VampPrior(50)}
POSTERIORS = {"diagonal": posteriors.Diagonal(), "full": posteriors.FullCovariance()}


def config(
    data: str = "digits",
    latent: int = 16,
    network: Literal["conv", "residual", "mlp"] = "conv",
    likelihood: Literal["logistic", "logistic_mixture", "categorical"] = "logistic",
    prior: Literal["normal", "mixture", "vamp"] = "normal",
    posterior: Literal["diagonal", "full"] = "diagonal",
    bound: Literal["elbo", "iwae"] = "elbo",
    samples: int = 1,
    kl: Literal["analytic", "sampled"] = "analytic",
    beta: float = 1.0,
    anneal: Literal["none", "linear", "cyclical"] = "none",
    anneal_steps: int = 500,
    free_bits: float = 0.0,
    balance: bool = False,
    lr: float = 2e-3,
    batch: int = 128,
    steps: int = 2500,
    weight_decay: float = 1.0,
    ema: float = 0.99,
    precision: Literal["float32", "bfloat16"] = "float32",
    smoke: bool = False,
) -> Experiment:
    """The main job.

    Args:
        data: images of whole numbers, by name or path; sides must be multiples of 4
        latent: dimensions of z
        network: of encoder and decoder
        likelihood: p(x | z) of a pixel: one discretized logistic, five of them, or a softmax over the 17 levels
        prior: p(z): standard normal, a mixture of 20 normals, or the VampPrior with 50 pseudo-inputs
        posterior: the covariance of q(z | x)
        bound: what is maximized: the ELBO, or the importance-weighted bound
        samples: of z per example
        kl: of the ELBO, in closed form where there is one, or estimated from the samples
        beta: weight of the KL term (Higgins et al. 2017)
        anneal: how beta grows from 0: not at all, once, or again in every cycle (Fu et al. 2019)
        anneal_steps: of the growth, or of a cycle
        free_bits: of the ELBO: nats of KL that cost nothing, per latent dimension with a diagonal posterior and a
            normal prior and the analytic KL, else in all
        balance: of the ELBO, per latent dimension: while beta grows, dimensions with more KL weigh more
        lr: learning rate of AdamW at the start of its cosine decay
        batch: examples per step
        weight_decay: pull of AdamW towards zero; the set is small, and without it the model overfits
        ema: decay of the averaged parameters that evaluation and samples use
        precision: type of the networks' computations; parameters are float32
    """
    images = load(data)
    info = images.images(multiple=4)
    size, dtype, q = info.shape[:2], jnp.dtype(precision), POSTERIORS[posterior]
    channels, hidden = (pyramid(size, 4, 8), 8) if smoke else (pyramid(size, 32), 128)
    pixel = LIKELIHOODS[likelihood](info.levels)
    outputs = pixel.channels * info.shape[-1]
    inner = q.outputs(latent)
    networks = {
        "conv": (
            ConvEncoder(channels, hidden, inner, dtype),
            ConvDecoder(size, channels[:1] * len(channels), outputs, dtype),
        ),
        "residual": (
            ResidualEncoder(channels, inner, dtype),
            ResidualDecoder(size, channels[::-1], outputs, dtype),
        ),
        "mlp": (MLP([4 * hidden] * 2, inner, dtype=dtype), MLP([4 * hidden] * 2, (*size, outputs), dtype=dtype)),
    }
    bound_ = {
        "elbo": partial(bounds.elbo, analytic=kl == "analytic", free_bits=free_bits, balanced=balance),
        "iwae": bounds.iwae,
    }
    model = VAE(
        *networks[network],
        likelihood=pixel,
        latent=latent,
        beta=ANNEALING[anneal](beta, anneal_steps),
        prior=PRIORS[prior],
        posterior=q,
        bound=bound_[bound],
        samples=samples,
    )
    return Experiment(
        model,
        with_ema(descent(model, {"vae": adamw(lr, steps, weight_decay)}), "vae", ema),
        data=images,
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        metrics=[elbo, iwae_50, active_units, reconstruction_error, *([latent_accuracy] if info.classes else [])],
        plots=[
            plots.samples,
            plots.reconstructions,
            plots.latent_scatter,
            plots.latent_usage,
            plots.interpolations,
            plots.traversals,
            plots.imputations,
        ],
        evaluate_every=500,
        plot_every=1000,
        checkpoint_every=500,
        best=Best("validation/elbo", "max"),
    )
