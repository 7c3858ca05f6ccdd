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
from gen_jax.models.common.normalization import instance_norm
from gen_jax.models.gan import PatchDiscriminator
from gen_jax.models.translation import CycleGAN, ResNetTranslator
from gen_jax.optimizers import warm_down

DATA = "mnist16?partner=usps" if is_prepared("mnist16") and is_prepared("usps") else "twins?pairing=unpaired"


def config(
    data: str = DATA,
    features: int = 16,
    blocks: int = 2,
    layers: int = 1,
    cycle: float = 5.0,
    semantic: float = 0.0,
    pool: int = 50,
    lr: float = 5e-4,
    decay: float = 0.5,
    ema: float = 0.995,
    batch: int = 16,
    steps: int = 3000,
    smoke: bool = False,
) -> Experiment:
    """No identity loss: the domains differ in the meaning of gray levels.

    Args:
        data: two domains of images with labels, a name and its partner
        features: channels of the first layer of all networks
        blocks: residual blocks of the generators
        layers: strided convolutions of the discriminators; their patches must fit into the images
        cycle: weight of the mean absolute difference after the way there and back; 5 is the paper's 10
        semantic: weight of the cross-entropy between a classifier's answers to an image and to its translation; it
            learns the labels of the first domain, and of translations from it; 0 leaves it out
        pool: earlier translations of each domain that the discriminators may be shown
        lr: learning rate of Adam for both players
        decay: share of the steps, at the end, over which the learning rate falls linearly to 0; 0 keeps it constant
        ema: decay of the averaged generators that evaluation and translation use
        batch: images of each domain per step
        steps: training steps
    """
    if smoke:
        data, features, blocks, batch, pool, steps = "twins?pairing=unpaired", 4, 1, 4, 6, min(steps, 20)
    domains = load(data)
    x, y = domains.domains()
    if semantic and not x.classes:
        raise UserError(f"{domains.name} has no labels for a classifier: give --semantic 0")
    channels = [one.shape[-1] for one in (x, y)]
    plain = instance_norm(affine=False)
    model = CycleGAN(
        (ResNetTranslator(channels[1], features, blocks), ResNetTranslator(channels[0], features, blocks)),
        (PatchDiscriminator(features, layers, plain), PatchDiscriminator(features, layers, plain)),
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
