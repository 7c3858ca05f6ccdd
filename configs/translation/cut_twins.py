"""CUT (Park et al. 2020): from digits to their twins in other colors, one way, or between your own two domains.

python train.py cut_twins
python train.py cut_twins --fast
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
from gen_jax.models.translation import CUT, ResNetTranslator
from gen_jax.optimizers import warm_down


def config(
    data: str = "twins?pairing=unpaired",
    fast: bool = False,
    nce: float = 1.0,
    features: int = 16,
    blocks: int = 3,
    layers: int = 1,
    patches: int = 64,
    width: int = 64,
    deep: bool = True,
    lr: float = 2e-4,
    decay: float = 0.5,
    ema: float = 0.99,
    batch: int = 4,
    steps: int = 3000,
    smoke: bool = False,
) -> Experiment:
    """Patches of a translation stay recognizable by the features of their source; the reference has batch 1.

    Args:
        data: two domains of images: pairs taken apart, or a name or folder and its --partner
        fast: FastCUT: a larger weight, no images of the target domain, and mirrored images
        nce: weight of the contrastive loss, ten times as much with --fast; 0.5 is the paper's 1
        features: channels of the first layer of both networks; 64 in the reference
        blocks: residual blocks of the generator; 9 in the reference
        layers: strided convolutions of the discriminator; 3 in the reference
        patches: positions that are compared in each map; 256 in the reference
        width: of the projections that are compared; 256 in the reference
        deep: compares only the deep maps, for domains that exchange light and dark; the reference compares all
        lr: learning rate of Adam for both players
        decay: share of the steps, at the end, over which the learning rate falls linearly to 0; 0 keeps it constant
        ema: decay of the averaged generator that evaluation and translation use
        batch: images of each domain per step
        steps: training steps
    """
    domains = load(data)
    x, y = domains.domains()
    if smoke:
        features, blocks, patches, width, batch, steps = 4, 1, 8, 8, 4, min(steps, 20)
    channels = [one.shape[-1] for one in (x, y)]
    same = channels[0] == channels[1]
    model = CUT(
        ResNetTranslator(channels[1], features, blocks, resampling="blurred"),
        PatchDiscriminator(features, layers, instance_norm(affine=False)),
        nce=10 * nce if fast else nce,
        identity=same and not fast,
        patches=patches,
        width=width,
        maps=("block_0", f"block_{blocks // 2}") if deep else (),
        flip=fast,
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
