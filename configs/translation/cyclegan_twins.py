"""CycleGAN (Zhu et al. 2017): between digits and their twins in other colors, without pairs, or your own two domains.

python train.py cyclegan_twins
python train.py cyclegan_twins --data 'emoji?pairing=unpaired'
python train.py cyclegan_twins --data photos/horses --partner photos/zebras --pairing unpaired
"""

import optax

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.data import load
from gen_jax.data.transforms import scale
from gen_jax.evaluation import unpaired_quality
from gen_jax.experiment import Experiment
from gen_jax.models.common.normalization import instance_norm
from gen_jax.models.gan import PatchDiscriminator
from gen_jax.models.translation import CycleGAN, ResNetTranslator
from gen_jax.optimizers import warm_down


def config(
    data: str = "twins?pairing=unpaired",
    features: int = 16,
    blocks: int = 3,
    layers: int = 1,
    cycle: float = 5.0,
    identity: float = 2.5,
    pool: int = 50,
    lr: float = 4e-4,
    decay: float = 0.5,
    ema: float = 0.99,
    batch: int = 4,
    steps: int = 1000,
    smoke: bool = False,
) -> Experiment:
    """Residual generators and discriminators of patches; the reference has features 64, 9 blocks, layers 3, batch 1.

    Args:
        data: two domains of images: pairs taken apart, or a name or folder and its --partner
        features: channels of the first layer of all networks
        blocks: residual blocks of the generators
        layers: strided convolutions of the discriminators; their patches must fit into the images
        cycle: weight of the mean absolute difference after the way there and back; 5 is the paper's 10
        identity: weight of the change of images of the target domain; 2.5 is the paper's 5, 0 leaves it out
        pool: earlier translations of each domain that the discriminators may be shown
        lr: learning rate of Adam for both players
        decay: share of the steps, at the end, over which the learning rate falls linearly to 0; 0 keeps it constant
        ema: decay of the averaged generators that evaluation and translation use
        batch: images of each domain per step
        steps: training steps
    """
    domains = load(data)
    x, y = domains.domains()
    if smoke:
        features, blocks, batch, pool, steps = 4, 1, 4, 6, min(steps, 20)
    channels = [one.shape[-1] for one in (x, y)]
    plain = instance_norm(affine=False)
    model = CycleGAN(
        (ResNetTranslator(channels[1], features, blocks), ResNetTranslator(channels[0], features, blocks)),
        (PatchDiscriminator(features, layers, plain), PatchDiscriminator(features, layers, plain)),
        cycle,
        identity if channels[0] == channels[1] else 0.0,
        pool,
    )
    tx = optax.adam(warm_down(lr, steps, share=decay), b1=0.5)
    return Experiment(
        model,
        with_ema(descent(model, {"discriminator": tx, "generator": tx}), "generator", ema),
        data=domains,
        batch=batch,
        steps=steps,
        transforms=[scale(-1, 1, x.levels)],
        metrics=[unpaired_quality(often=20 if smoke else 100, adapted=0 if smoke else 10_000)],
        plots=[plots.translations],
        report_every=50,
        evaluate_every=500,
        plot_every=500,
        checkpoint_every=500,
    )
