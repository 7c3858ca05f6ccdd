"""Progressive growing on the embedded digits (Karras et al. 2018, arXiv:1710.10196), and its successors.

python train.py configs/gan/progan_digits.py
python train.py configs/gan/progan_digits.py --no-growing --architecture msg
"""

from collections.abc import Callable
from typing import Literal

import optax

from gen_jax import plots
from gen_jax.algorithms import descent, first_examples, reset_moments, staged, with_ema
from gen_jax.data import load
from gen_jax.data.transforms import scale
from gen_jax.evaluation import sample_metrics, sliced_wasserstein, stability
from gen_jax.experiment import Experiment
from gen_jax.models.common.conditioning import ClassLabels
from gen_jax.models.gan import AdversarialLoss, drift, gradient_penalty, non_saturating, r1, relativistic, wasserstein
from gen_jax.models.gan.progressive import (
    GrowingDiscriminator,
    GrowingGenerator,
    ProgressiveGAN,
    Schedule,
    schedule_of,
)
from gen_jax.models.gan.style_networks import sizes
from gen_jax.optimizers import half_life

LOSSES: dict[str, Callable[[], AdversarialLoss]] = {
    "wasserstein": wasserstein,
    "non_saturating": non_saturating,
    "relativistic": relativistic,
}
PENALTIES = {"gradient_penalty": gradient_penalty, "r1": r1}


def config(
    data: str = "digits16",
    latent: int = 64,
    base: int = 512,
    most: int = 64,
    growing: bool = True,
    architecture: Literal["progressive", "skip", "residual", "msg"] = "progressive",
    phase: float = 20.0,
    loss: Literal["wasserstein", "non_saturating", "relativistic"] = "wasserstein",
    penalty: Literal["gradient_penalty", "r1"] = "gradient_penalty",
    weight: float = 10.0,
    group: int = 4,
    conditional: bool = False,
    lr: float = 1e-3,
    ema: float = 10.0,
    batch: int = 32,
    smallest: int = 16,
    steps: int = 8000,
    smoke: bool = False,
) -> Experiment:
    """Networks that grow from 4 x 4 pixels on, with equalized learning rates.

    Args:
        data: images of whole numbers, by name or path; sides must be 3 to 8 times a power of two
        latent: dimensions of the noise
        base: channels of a resolution are base / side
        most: at most so many channels
        growing: train small images first; else all layers from the start
        architecture: progressive and skip networks can grow; residual and msg do not
        phase: thousand images of each phase: of a level alone, and of its fading in
        loss: see `gen_jax.models.gan.losses`
        penalty: of the discriminator's gradients; see `gen_jax.models.gan.regularizers`
        weight: of the penalty
        group: examples over which the minibatch deviation is computed
        conditional: condition both networks on the labels of the data
        lr: learning rate of Adam for both players
        ema: half-life of the averaged generator, in thousand images
        batch: real images, and generated ones, per step, at the smallest size; halved with each level
        smallest: but at least so many
    """
    images = load(data)
    info = images.images()
    size, colors = info.shape[:2], info.shape[-1]
    if conditional and not info.classes:
        raise ValueError(f"{data} has no labels: use conditional=False")
    base, most = (16, 4) if smoke else (base, most)
    levels = len(sizes(size))
    if growing and architecture in ("residual", "msg"):
        raise ValueError(f"{architecture} networks do not grow: add --no-growing")
    if growing and levels == 1:
        raise ValueError(f"images of {size[0]}x{size[1]} have one level only: use growing=False")
    batches = [max(min(smallest, batch), batch // 2**level) for level in range(levels)] if growing else [batch]
    schedule = schedule_of(64 if smoke else round(1000 * phase), batches) if growing else Schedule()
    if growing and schedule.switches[-1] > steps:
        raise ValueError(
            f"growing to {size[0]}x{size[1]} takes {schedule.switches[-1]:,} steps and the run has {steps:,}: "
            "use a smaller phase or more steps"
        )
    model = ProgressiveGAN(
        GrowingGenerator(size, colors, base, most, architecture),
        GrowingDiscriminator(size, base, most, architecture=architecture, group=group),
        latent,
        LOSSES[loss](),
        regularizers=(PENALTIES[penalty](weight), *((drift(),) if loss == "wasserstein" else ())),
        conditioning=ClassLabels(info.classes) if conditional else None,
        schedule=schedule,
    )
    adam = optax.adam(lr, b1=0.0, b2=0.99)
    tx = {"discriminator": adam, "generator": adam}
    stages = [
        with_ema(first_examples(descent(stage, tx), n), "generator", half_life(1000 * ema, n))
        for stage, n in zip(model.stages(), batches)
    ]
    algorithm = reset_moments(staged(stages, schedule.starts), schedule.switches) if growing else stages[0]
    drawn = 200 if smoke else 2000
    return Experiment(
        model,
        algorithm,
        data=images,
        batch=batches[0],
        steps=min(steps, schedule.switches[-1] + 8 if growing else 20) if smoke else steps,
        transforms=[scale(-1, 1, levels=info.levels)],
        metrics=[*sample_metrics(info, drawn), sliced_wasserstein(drawn), stability],
        plots=[plots.samples, plots.real_and_fake, plots.noise_interpolations],
        plot_every=1000,
    )
