"""VQ-VAE on the embedded 8x8 digits: images as 4x4 codes, with a recurrent prior over them (van den Oord et al. 2017).

python train.py configs/vae/vqvae_digits.py

Results (133 s, 1 x cpu, 2 cores, 2026-11-22): likelihood ≤ 2.082 ± 0.02 bits/dim; reconstruction_rmse 1.229 ±
0.01 units of x.
"""

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.data import load
from gen_jax.evaluation import elbo, reconstruction_error
from gen_jax.experiment import Experiment
from gen_jax.models.common.likelihoods import DiscretizedLogistic
from gen_jax.models.common.networks import ResidualDecoder, ResidualEncoder, downsampled_size, pyramid
from gen_jax.models.vae import VQVAE
from gen_jax.optimizers import adamw


def config(
    data: str = "digits",
    codes: int = 32,
    dimensions: int = 8,
    commitment: float = 0.25,
    decay: float = 0.99,
    width: int = 32,
    lr: float = 2e-3,
    batch: int = 128,
    steps: int = 2000,
    weight_decay: float = 1.0,
    smoke: bool = False,
) -> Experiment:
    """Autoencoder, codebook and prior are trained together; `elbo` is of all three.

    Args:
        data: images of whole numbers, by name or path; sides must be multiples of 4
        codes: in the codebook
        dimensions: of a code's vector
        commitment: pull of encodings towards their codes
        decay: of the moving averages that are the codebook
        width: features of the networks
        lr: learning rate of AdamW at the start of its cosine decay
        batch: examples per step
        weight_decay: pull of AdamW towards zero
    """
    images = load(data)
    info = images.images(multiple=4)
    size, width = info.shape[:2], 8 if smoke else width
    widths = (width,) * (len(pyramid(size, width)) - 1)
    likelihood, grid = DiscretizedLogistic(info.levels), downsampled_size(size, len(widths))
    encoder = ResidualEncoder(widths, (*grid, dimensions))
    decoder = ResidualDecoder(size, widths, likelihood.channels * info.shape[-1])
    codes = 8 if smoke else codes
    model = VQVAE(encoder, decoder, likelihood, grid, codes, commitment, decay, prior_width=2 * width)
    return Experiment(
        model,
        with_ema(descent(model, {"vqvae": adamw(lr, steps, weight_decay)}), "vqvae", 0.99),
        data=images,
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        metrics=[elbo, reconstruction_error],
        plots=[plots.samples, plots.reconstructions],
        evaluate_every=500,
        checkpoint_every=500,
    )
