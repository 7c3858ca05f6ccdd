"""StyleGAN2-ADA on the embedded 8x8 digits (Karras et al. 2020, arXiv:1912.04958 and arXiv:2006.06676).

python train.py configs/gan/stylegan2_digits.py
python train.py configs/gan/stylegan2_digits.py --data FOLDER --base 4096 --most 256 --augmentation bgc --gamma 0.1
"""

from typing import Literal

from gen_jax import plots
from gen_jax.algorithms import descent, reset_moments, staged, with_ema
from gen_jax.data import load
from gen_jax.data.transforms import scale
from gen_jax.evaluation import sample_metrics, stability, style_state
from gen_jax.experiment import Experiment
from gen_jax.models.common.conditioning import ClassLabels
from gen_jax.models.gan import Augmentation, ada, r1
from gen_jax.models.gan.progressive import schedule_of
from gen_jax.models.gan.style_networks import StyleDiscriminator, StyleGenerator, sizes
from gen_jax.models.gan.stylegan import ProgressiveStyleGAN, StyleGAN, path_length
from gen_jax.optimizers import half_life, lazy_adam

AUGMENTATIONS = {"glyphs": ada.GLYPHS, "blit": ada.BLIT, "bgc": ada.BGC, "bgcfnc": (*ada.BGC, *ada.CORRUPT)}


def config(
    data: str = "digits",
    latent: int = 64,
    width: int = 64,
    layers: int = 2,
    base: int = 512,
    most: int = 64,
    low: int = 0,
    residual: bool = True,
    group: int = 4,
    growing: bool = False,
    phase: float = 20.0,
    conditional: bool = False,
    gamma: float = 1.0,
    gamma_every: int = 16,
    path: float = 0.0,
    path_every: int = 4,
    mixing: float = 0.0,
    augmentation: Literal["none", "glyphs", "blit", "bgc", "bgcfnc"] = "none",
    augmentation_target: float = 0.6,
    augmentation_images: int = 100_000,
    lr: float = 5e-3,
    ema: float = 10.0,
    batch: int = 16,
    steps: int = 12000,
    smoke: bool = False,
) -> Experiment:
    """A style-based generator against a residual discriminator, with lazy regularization.

    Args:
        data: images of whole numbers, by name or path; sides must be 3 to 8 times a power of two
        latent: dimensions of the noise z
        width: dimensions of the style w
        layers: of the mapping from z to w
        base: channels of a resolution are base / side
        most: at most so many channels
        low: how many of the highest resolutions are computed in bfloat16
        residual: the residual discriminator; else the plain one, which the authors use for CIFAR-10
        group: examples over which the minibatch deviation is computed
        growing: train small images first, and fade in layers for larger ones
        phase: of growing, in thousand images: of a level alone, and of its fading in
        conditional: condition both networks on the labels of the data
        gamma: weight of R1
        gamma_every: it is computed on every n-th step
        path: weight of the path length regularizer, 2 in the paper; 0 for none, as the authors set for small images
        path_every: it is computed on every n-th step
        mixing: probability of style mixing, 0.9 in the paper; 0, as the authors set for small images
        augmentation: operations of ADA; `glyphs` are those that do not make another digit or letter of one
        augmentation_target: mean sign of the discriminator's logits on real images
        augmentation_images: images in which the probability of augmentation may rise from 0 to 1
        lr: learning rate of Adam for both players
        ema: half-life of the averaged generator, in thousand images
        batch: real images, and generated ones, per step
    """
    images = load(data)
    info = images.images()
    size, colors = info.shape[:2], info.shape[-1]
    if conditional and not info.classes:
        raise ValueError(f"{data} has no labels: use conditional=False")
    base, most = (16, 4) if smoke else (base, most)
    operations = AUGMENTATIONS.get(augmentation)
    levels = len(sizes(size))
    if growing and levels == 1:
        raise ValueError(f"images of {size[0]}x{size[1]} have one level only: do not use growing")
    networks = (
        StyleGenerator(size, colors, width, layers, base, most, low),
        StyleDiscriminator(base, most, 1, group, residual, layers, low, size if growing else None),
    )
    options = dict(
        regularizers=(r1(gamma, gamma_every), *((path_length(path, path_every),) if path else ())),
        conditioning=ClassLabels(info.classes) if conditional else None,
        augmentation=ada.ADA(target=augmentation_target, examples=augmentation_images, operations=operations)
        if operations
        else Augmentation(),
        mixing=mixing,
    )
    if growing:
        schedule = schedule_of(64 if smoke else round(1000 * phase), [batch] * levels)
        if schedule.switches[-1] > steps:
            raise ValueError(
                f"growing to {size[0]}x{size[1]} takes {schedule.switches[-1]:,} steps and the run has {steps:,}: "
                "use a smaller phase or more steps"
            )
        model = ProgressiveStyleGAN(*networks, latent, schedule=schedule, **options)
    else:
        model = StyleGAN(*networks, latent, **options)
    tx = {"discriminator": lazy_adam(lr, gamma_every), "generator": lazy_adam(lr, path_every if path else 0)}
    stages = [
        with_ema(descent(stage, tx), "generator", half_life(1000 * ema, batch))
        for stage in (model.stages() if growing else [model])
    ]
    drawn = 200 if smoke else 2000
    return Experiment(
        model,
        reset_moments(staged(stages, schedule.starts), schedule.switches) if growing else stages[0],
        data=images,
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        transforms=[scale(-1, 1, levels=info.levels)],
        metrics=[*sample_metrics(info, drawn), stability, style_state],
        plots=[plots.samples, plots.real_and_fake, plots.noise_interpolations, plots.style_mixing, plots.truncations],
        plot_every=2000,
    )
