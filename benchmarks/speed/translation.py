"""Image translation against PyTorch: the same networks, losses and optimizers; and the translation of many images.

python -m benchmarks.speed.translation [--only pix2pix]          (needs the `bench` extra)

A step is one of each player. The rivals follow the turns of the reference implementation: Pix2Pix moves the
discriminator first; CycleGAN the generators first, with pools of 50 images.
"""

from __future__ import annotations

import random
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import Report, in_turns, options, stepper
from benchmarks.rivals import Elsewhere, Step, serve, several, torch_device
from gen_jax.algorithms import descent
from gen_jax.data import Resident
from gen_jax.loop import initial_state
from gen_jax.models.common.normalization import instance_norm
from gen_jax.models.gan import PatchDiscriminator
from gen_jax.models.translation import CycleGAN, Pix2Pix, ResNetTranslator, UNet

BATCH, FEATURES, PAIRS, STEPS = 4, 16, 64, 5
MANY = 1000  # images of a folder


def pairs(size: int) -> np.ndarray:
    """(PAIRS, 2, size, size, 3) images in [-1, 1]."""
    return np.random.default_rng(0).uniform(-1, 1, (PAIRS, 2, size, size, 3)).astype(np.float32)


def _unet(torch, depth: int):
    nn = torch.nn
    widths = [FEATURES * min(2**i, 8) for i in range(depth)]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.ModuleList(), nn.ModuleList()
            for i, width in enumerate(widths):
                before = 3 if i == 0 else widths[i - 1]
                inner = i in (0, depth - 1)
                layers = [] if i == 0 else [nn.LeakyReLU(0.2)]
                layers += [nn.Conv2d(before, width, 4, 2, 1, bias=inner)]
                self.down.append(nn.Sequential(*layers, *([] if inner else [nn.BatchNorm2d(width)])))
            for i, width in enumerate([*reversed(widths[:-1]), 3]):
                before = widths[-1] if i == 0 else 2 * widths[-1 - i]
                last = i == depth - 1
                layers = [nn.ReLU(), nn.ConvTranspose2d(before, width, 4, 2, 1, bias=last)]
                layers += [nn.Tanh()] if last else [nn.BatchNorm2d(width)]
                self.up.append(nn.Sequential(*layers, *([nn.Dropout(0.5)] if 1 <= i <= depth - 5 else [])))

        def forward(self, x):
            skips = []
            for layer in self.down:
                x = layer(x)
                skips.append(x)
            skips.pop()
            for layer in self.up:
                x = layer(x)
                x = torch.cat([skips.pop(), x], 1) if skips else x
            return x

    return Net()


def _resnet(torch, blocks: int):
    nn = torch.nn
    norm = lambda width: nn.InstanceNorm2d(width)

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            part = lambda: [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), norm(width)]
            self.body = nn.Sequential(*part(), nn.ReLU(), *part())

        def forward(self, x):
            return x + self.body(x)

    f = FEATURES
    layers = [nn.ReflectionPad2d(3), nn.Conv2d(3, f, 7), norm(f), nn.ReLU()]
    for width in (f, 2 * f):
        layers += [nn.Conv2d(width, 2 * width, 3, 2, 1), norm(2 * width), nn.ReLU()]
    layers += [Block(4 * f) for _ in range(blocks)]
    for width in (4 * f, 2 * f):
        layers += [nn.ConvTranspose2d(width, width // 2, 3, 2, 1, 1), norm(width // 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(f, 3, 7), nn.Tanh())


def _patches(torch, channels: int, features: int, layers: int, norm):
    nn = torch.nn
    bias = norm is nn.InstanceNorm2d
    body = [nn.Conv2d(channels, features, 4, 2, 1), nn.LeakyReLU(0.2)]
    widths = [features * 2**i for i in range(layers + 1)]
    for i, (before, width) in enumerate(zip(widths, widths[1:]), 1):
        body += [nn.Conv2d(before, width, 4, 2 if i < layers else 1, 1, bias=bias), norm(width), nn.LeakyReLU(0.2)]
    return nn.Sequential(*body, nn.Conv2d(widths[-1], 1, 4, 1, 1))


def _drawn(torch, data: np.ndarray):
    """Functions to draw a batch of each side."""
    sides = torch.from_numpy(np.moveaxis(data, -1, 2)).to(torch_device())
    return lambda side, rows: sides[rows, side]


def torch_pix2pix(data: np.ndarray) -> Step:
    import torch

    nn = torch.nn
    generator, judge = _unet(torch, 6).to(torch_device()), _patches(torch, 6, 2 * FEATURES, 2, nn.BatchNorm2d)
    judge, draw = judge.to(torch_device()), _drawn(torch, data)
    adam = lambda module: torch.optim.Adam(module.parameters(), 2e-4, betas=(0.5, 0.999), fused=True)
    of_generator, of_judge, cross = adam(generator), adam(judge), nn.BCEWithLogitsLoss()
    right = lambda logits, label: cross(logits, torch.full_like(logits, label))

    def run():
        rows = torch.randint(PAIRS, (BATCH,))
        x, y = draw(0, rows), draw(1, rows)
        fake = generator(x)
        of_judge.zero_grad()
        judged = judge(torch.cat([x, fake.detach()], 1)), judge(torch.cat([x, y], 1))
        (right(judged[0], 0.0) + right(judged[1], 1.0)).backward()
        of_judge.step()
        judge.requires_grad_(False)
        of_generator.zero_grad()
        loss = right(judge(torch.cat([x, fake], 1)), 1.0) + 100 * (fake - y).abs().mean()
        loss.backward()
        of_generator.step()
        judge.requires_grad_(True)
        return loss.detach()

    return run


def torch_cyclegan(data: np.ndarray) -> Step:
    import torch

    nn, device = torch.nn, torch_device()
    there, back = (_resnet(torch, 3).to(device) for _ in range(2))
    judges = [_patches(torch, 3, FEATURES, 1, nn.InstanceNorm2d).to(device) for _ in range(2)]
    both = lambda modules: [p for module in modules for p in module.parameters()]
    adam = lambda modules: torch.optim.Adam(both(modules), 2e-4, betas=(0.5, 0.999), fused=True)
    of_generators, of_judges, draw, pools = adam([there, back]), adam(judges), _drawn(torch, data), ([], [])
    square, l1 = lambda a, target: ((a - target) ** 2).mean(), lambda a, b: (a - b).abs().mean()

    def pooled(pool, images):
        kept = []
        for image in images:
            if len(pool) < 50:
                pool.append(image)
                kept.append(image)
            elif random.random() < 0.5:
                place = random.randrange(50)
                kept.append(pool[place])
                pool[place] = image
            else:
                kept.append(image)
        return torch.stack(kept)

    def run():
        x, y = draw(0, torch.randint(PAIRS, (BATCH,))), draw(1, torch.randint(PAIRS, (BATCH,)))
        for judge in judges:
            judge.requires_grad_(False)
        of_generators.zero_grad()
        fake_y, fake_x = there(x), back(y)
        loss = square(judges[0](fake_y), 1.0) + square(judges[1](fake_x), 1.0)
        loss = loss + 10 * (l1(back(fake_y), x) + l1(there(fake_x), y)) + 5 * (l1(there(y), y) + l1(back(x), x))
        loss.backward()
        of_generators.step()
        for judge in judges:
            judge.requires_grad_(True)
        of_judges.zero_grad()
        for judge, real, fake, pool in zip(judges, (y, x), (fake_y, fake_x), pools):
            (0.5 * (square(judge(real), 1.0) + square(judge(pooled(pool, fake.detach())), 0.0))).backward()
        of_judges.step()
        return loss.detach()

    return run


def torch_translate(data: np.ndarray) -> Step:
    """One image a call, as the reference's test loop."""
    import torch

    generator = _unet(torch, 6).to(torch_device()).eval()
    x = torch.from_numpy(np.moveaxis(data[:, 0], -1, 1)).to(torch_device())

    def run():
        with torch.no_grad():
            return [generator(x[i % PAIRS][None]) for i in range(MANY)][-1].sum()

    return run


def ours(model, data: np.ndarray) -> Step:
    """One step of the loop."""
    tx = optax.adam(2e-4, b1=0.5)
    algorithm = descent(model, {"discriminator": tx, "generator": tx})
    return stepper(algorithm, {"x": data[:, 0], "y": data[:, 1]}, BATCH, "generator_loss")


def pix2pix() -> Pix2Pix:
    return Pix2Pix(UNet(3, FEATURES, 6), PatchDiscriminator(2 * FEATURES, 2))


def cyclegan() -> CycleGAN:
    plain = instance_norm(affine=False)
    net, judge = ResNetTranslator(3, FEATURES, 3), PatchDiscriminator(FEATURES, 1, plain)
    return CycleGAN((net, net), (judge, judge))


def translate(batch: int = 16) -> Step:
    """All images in batches."""
    model, data = pix2pix(), pairs(64)
    source = Resident({"x": data[:, 0], "y": data[:, 1]}, BATCH)
    tx = optax.adam(2e-4)
    state = initial_state(descent(model, {"discriminator": tx, "generator": tx}), jax.tree.map(jnp.asarray, source))
    program = jax.jit(model.translate)
    x = np.resize(data[:, 0], (MANY // batch * batch + batch, 64, 64, 3))

    def run() -> float:
        return sum(float(program(state, x[i : i + batch]).sum()) for i in range(0, MANY, batch))

    return run


ELSEWHERE = {
    "PyTorch, pix2pix": (torch_pix2pix, partial(pairs, 64)),
    "PyTorch, cyclegan": (torch_cyclegan, partial(pairs, 32)),
    "PyTorch, translate": (torch_translate, partial(pairs, 64)),
}


def main() -> None:
    if case := options().case:
        rival, data = ELSEWHERE[case.removesuffix("/served")]
        return serve(rival(data()))
    report = Report("translation")
    steps = {
        "pix2pix": (lambda: ours(pix2pix(), pairs(64)), f"Pix2Pix 64x64, U-Net of 6 halvings, batch {BATCH}"),
        "cyclegan": (lambda: ours(cyclegan(), pairs(32)), f"CycleGAN 32x32, 3 blocks, batch {BATCH}"),
    }
    for name, (make, what) in steps.items():
        if report.options.only not in name:
            continue
        rival = f"PyTorch, {name}"
        times = in_turns({"gen_jax": several(make(), STEPS), rival: several(Elsewhere(__spec__.name, rival), STEPS)}, 5)
        why = "XLA's matrix products on a CPU reach a third of the rate of PyTorch's"
        report.row(what, times["gen_jax"] / STEPS, "PyTorch", times[rival] / STEPS, ">= 1", why=why)
    if report.options.only in "translate":
        times = in_turns({"gen_jax": translate(), "torch": Elsewhere(__spec__.name, "PyTorch, translate")}, 3)
        what = f"translation of {MANY:,} images 64x64"
        report.row(what, times["gen_jax"], "PyTorch, one image a call", times["torch"], ">= 2")
    report.finish()


if __name__ == "__main__":
    main()
