"""CycleGAN between MNIST and USPS, judged by the labels that translations keep; digits and twins where not prepared.

python -m gen_jax data prepare mnist16 --manual-dir DIR
python -m gen_jax data prepare usps --manual-dir DIR
python train.py cyclegan_digits
"""

import optax

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.data import load
from gen_jax.data.catalogue import is_prepared
from gen_jax.data.transforms import scale
from gen_jax.errors import UserError
from gen_jax.evaluation import unpaired_quality
from gen_jax.experiment import Experiment
from gen_jax.models.common.networks import ConvEncoder
from gen_jax.models.gan import DCGANDiscriminator
from gen_jax.models.translation import CycleGAN, ResNetTranslator
from gen_jax.optimizers import warm_down

DATA = "mnist16?partner=usps" if is_prepared("mnist16") and is_prepared("usps") else "twins?pairing=unpaired"


def config(
    data: str = DATA,
    features: int = 16,
    blocks: int = 2,
    width: int = 32,
    cycle: float = 1.0,
    semantic: float = 0.5,
    pool: int = 50,
    lr: float = 5e-4,
    decay: float = 0.5,
    ema: float = 0.995,
    batch: int = 16,
    steps: int = 2500,
    smoke: bool = False,
) -> Experiment:
    """Discriminators of whole images, a classifier that keeps the digit (Hoffman et al. 2018), and no identity loss.

    Args:
        data: two domains of images with labels, a name and its partner
        features: channels of the generators' first layer
        blocks: residual blocks of the generators
        width: channels of the discriminators' first layer
        cycle: weight of the mean absolute difference after the way there and back; 5 is the paper's 10
        semantic: weight of the cross-entropy between a classifier's answers to an image and to its translation; the
            classifier learns the labels of the first domain's images and of their translations; 0 leaves it out
        pool: earlier translations of each domain that the discriminators may be shown
        lr: learning rate of Adam for both players
        decay: share of the steps, at the end, over which the learning rate falls linearly to 0; 0 keeps it constant
        ema: decay of the averaged generators that evaluation and translation use
        batch: images of each domain per step
        steps: training steps
    """
    if smoke:
        data, features, blocks, width = "twins?pairing=unpaired", 4, 1, 4
        batch, pool, steps = 4, 6, min(steps, 20)
    domains = load(data)
    x, y = domains.domains()
    if semantic and not x.classes:
        raise UserError(f"{domains.name} has no labels for a classifier: give --semantic 0")
    discriminator = DCGANDiscriminator((width, 2 * width, 4 * width), dropout=0.0)
    channels = [one.shape[-1] for one in (x, y)]
    model = CycleGAN(
        (ResNetTranslator(channels[1], features, blocks), ResNetTranslator(channels[0], features, blocks)),
        (discriminator, discriminator),
        cycle,
        identity=0.0,
        pool=pool,
        classifier=ConvEncoder((32, 64), 128, x.classes) if semantic else None,
        semantic=semantic,
    )
    tx = optax.adam(warm_down(lr, steps, share=decay), b1=0.5)
    players = {"discriminator": tx, "generator": tx, **({"classifier": optax.adam(1e-3)} if semantic else {})}
    return Experiment(
        model,
        with_ema(descent(model, players), "generator", ema),
        data=domains,
        batch=batch,
        steps=steps,
        transforms=[scale(-1, 1, x.levels)],
        metrics=[unpaired_quality(often=20 if smoke else 200, adapted=0 if smoke else 10_000)],
        plots=[plots.translations],
        report_every=50,
        evaluate_every=500,
        plot_every=500,
        checkpoint_every=500,
    )
