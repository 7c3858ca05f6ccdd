"""Conditional VAE on the embedded 8x8 digits: images of a given class (Sohn, Lee & Yan 2015).

python train.py configs/vae/cvae_digits.py

Results (223 s, 1 x cpu, 2 cores, 2026-11-22): likelihood ≤ 1.806 ± 0.02 bits/dim; active_units 5 of 12;
latent_accuracy 0.6467 ± 0.04 share.
"""

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.data import load
from gen_jax.evaluation import active_units, elbo, iwae_50, latent_accuracy
from gen_jax.experiment import Experiment
from gen_jax.models.common.conditioning import ClassLabels
from gen_jax.models.common.likelihoods import DiscretizedLogistic
from gen_jax.models.common.networks import ConvDecoder, ConvEncoder, pyramid
from gen_jax.models.vae import VAE
from gen_jax.optimizers import adamw


def config(
    data: str = "digits",
    latent: int = 12,
    lr: float = 2e-3,
    batch: int = 128,
    steps: int = 2500,
    weight_decay: float = 1.0,
    smoke: bool = False,
) -> Experiment:
    """Samples are of every class in turn.

    Args:
        data: images with labels, by name or path; sides must be multiples of 4
        latent: dimensions of z, which need not tell the class
        lr: learning rate of AdamW at the start of its cosine decay
        batch: examples per step
        weight_decay: pull of AdamW towards zero
    """
    images = load(data)
    info = images.images(multiple=4, labels=True)
    size = info.shape[:2]
    channels, hidden = (pyramid(size, 4, 8), 8) if smoke else (pyramid(size, 32), 128)
    likelihood = DiscretizedLogistic(info.levels)
    encoder = ConvEncoder(channels, hidden, 2 * latent)
    decoder = ConvDecoder(size, channels[:1] * len(channels), likelihood.channels * info.shape[-1])
    model = VAE(encoder, decoder, likelihood, latent, conditioning=ClassLabels(info.classes))
    return Experiment(
        model,
        with_ema(descent(model, {"vae": adamw(lr, steps, weight_decay)}), "vae", 0.99),
        data=images,
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        metrics=[elbo, iwae_50, active_units, latent_accuracy],
        plots=[plots.samples, plots.reconstructions, plots.interpolations, plots.imputations],
        evaluate_every=500,
        checkpoint_every=500,
    )
