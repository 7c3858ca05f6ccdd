"""Training steps of StyleGAN2 against the reference implementation in PyTorch: the same networks, batch and recipe.

python -m benchmarks.speed.stylegan          (needs PyTorch, and the checkout of NVlabs/stylegan2-ada-pytorch that the
                                              variable STYLEGAN2_ADA_PYTORCH names)

A turn is sixteen steps of both players with R1 on one of them and path lengths on four, without augmentation. On a CPU
the reference takes its pure PyTorch operations.
"""

from __future__ import annotations

import os
import sys

import numpy as np

from benchmarks.harness import Report, in_turns, options, stepper
from benchmarks.rivals import Elsewhere, Step, serve, several, torch_device
from gen_jax.algorithms import descent
from gen_jax.models.gan import r1
from gen_jax.models.gan.style_networks import StyleDiscriminator, StyleGenerator
from gen_jax.models.gan.stylegan import StyleGAN, path_length
from gen_jax.optimizers import lazy_adam

BATCH, LATENT, TURN = 16, 64, 16
SIZES = {"16x16": (16, 512, 64, 1), "32x32": (32, 1024, 64, 3)}  # side, base and most channels, colors


def images(side: int, colors: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (256, side, side, colors)).astype(np.float32)


def ours(name: str) -> Step:
    """One step of the loop."""
    side, base, most, colors = SIZES[name]
    model = StyleGAN(
        StyleGenerator((side, side), colors, LATENT, 2, base, most),
        StyleDiscriminator(base, most),
        LATENT,
        regularizers=(r1(0.1, 16), path_length(2.0, 4)),
        mixing=0.9,
    )
    algorithm = descent(model, {"discriminator": lazy_adam(2.5e-3, 16), "generator": lazy_adam(2.5e-3, 4)})
    return stepper(algorithm, {"x": images(side, colors)}, BATCH, "generator_loss")


def reference(name: str) -> Step:
    """One step of the reference's phases: generator, path lengths, discriminator, R1."""
    sys.path.insert(0, os.environ["STYLEGAN2_ADA_PYTORCH"])
    import torch
    from training.loss import StyleGAN2Loss
    from training.networks import Discriminator, Generator

    side, base, most, colors = SIZES[name]
    channels = {"channel_base": base, "channel_max": most}
    shape = {"c_dim": 0, "img_resolution": side, "img_channels": colors}
    device = torch.device(torch_device())
    generator = Generator(LATENT, w_dim=LATENT, mapping_kwargs={"num_layers": 2}, synthesis_kwargs=channels, **shape)
    judge = Discriminator(**shape, **channels, epilogue_kwargs={"mbstd_group_size": 4})
    generator, judge = (net.to(device).train().requires_grad_(False) for net in (generator, judge))
    loss = StyleGAN2Loss(device, generator.mapping, generator.synthesis, judge, r1_gamma=0.1)
    adam = lambda net, n: torch.optim.Adam(
        net.parameters(), 2.5e-3 * n / (n + 1), betas=(0.0, 0.99 ** (n / (n + 1))), eps=1e-8
    )
    phases = [("Gmain", generator, 1), ("Greg", generator, 4), ("Dmain", judge, 1), ("Dreg", judge, 16)]
    optimizers = {generator: adam(generator, 4), judge: adam(judge, 16)}
    data = torch.from_numpy(np.moveaxis(images(side, colors), -1, 1).copy()).to(device)
    empty, steps = torch.zeros([BATCH, 0], device=device), [0]

    def run():
        real = data[torch.randint(len(data), (BATCH,))]
        for phase, net, every in phases:
            if steps[0] % every:
                continue
            optimizers[net].zero_grad(set_to_none=True)
            net.requires_grad_(True)
            z = torch.randn([BATCH, LATENT], device=device)
            loss.accumulate_gradients(phase, real, empty, z, empty, True, every)
            net.requires_grad_(False)
            optimizers[net].step()
        steps[0] += 1
        return torch.zeros([])

    return run


def main() -> None:
    if case := options().case:
        return serve(reference(case.removesuffix("/served")))
    report = Report("stylegan")
    for name, (_, _, most, _) in SIZES.items():
        if report.options.only not in name:
            continue
        rivals = {"gen_jax": several(ours(name), TURN), "reference": several(Elsewhere(__spec__.name, name), TURN)}
        times = in_turns(rivals, 5)
        what = f"StyleGAN2 {name}, at most {most} channels, batch {BATCH}"
        report.row(what, times["gen_jax"] / TURN, "stylegan2-ada-pytorch", times["reference"] / TURN, ">= 1")
    report.finish()


if __name__ == "__main__":
    main()
