"""Latent spaces of generators: drawing by seed, interpolation, mixing of styles, projection of images, directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from gen_jax.core import Adversarial, Batch, Invertible, Latent, State, StyleBased, fold_in
from gen_jax.models.common.arrays import sum_except_batch
from gen_jax.models.vae.posteriors import mean as mean_of

__all__ = [
    "GROUPS",
    "Projection",
    "Space",
    "interpolate",
    "layers_of",
    "mix",
    "numbers_of",
    "principal_directions",
    "project",
    "space_of",
    "spherical",
]

GROUPS = ("coarse", "middle", "fine")


class Space(NamedTuple):
    """A latent space and its images.

    draw: (keys (n,), condition) -> points (n, *shape). decode: (points, condition) -> images (n, *x). encode: a batch
    -> points, or None if the model has no encoder. cost: (points, images, condition) -> (n,) by which images are
    projected if the model has a likelihood: -log p(x | z) in nats. curved: points are noise, between which the way is
    on a sphere.
    """

    name: str
    draw: Callable[[Array, Batch | None], Array]
    decode: Callable[[Array, Batch | None], Array]
    encode: Callable[[Batch], Array] | None = None
    cost: Callable[[Array, Array, Batch | None], Array] | None = None
    curved: bool = True


def space_of(model: Any, state: State, name: str = "") -> Space:
    """The latent space of a model: "w" or "z" of StyleGAN, "z" of other GANs, VAEs and flows.

    Raises ValueError for a model without one, or without the space of this name.
    """
    each = lambda noise: lambda keys, given: jax.vmap(lambda key: noise(key, 1)[0])(keys)
    if isinstance(model, StyleBased) and name in ("", "w"):
        noise = each(model.noise)
        draw = lambda keys, given: model.map(state, noise(keys, given), given)
        return Space("w", draw, lambda ws, given: model.synthesize(state, ws), curved=False)
    if name not in ("", "z"):
        raise ValueError(f'this model has no latent space "{name}": "w" is for StyleGAN, "z" for others')
    if isinstance(model, Adversarial):
        return Space("z", each(model.noise), lambda z, given: model.generate(state, z, given))
    if isinstance(model, Latent):
        prior = lambda key, n: model.prior_of(state).sample(seed=key, sample_shape=(n,)).reshape(n, -1)
        decode = lambda z, given: model.decode(state, z, given).mean()
        cost = lambda z, x, given: -sum_except_batch(model.decode(state, z, given).log_prob(x))
        return Space("z", each(prior), decode, lambda batch: mean_of(model.encode(state, batch)), cost)
    if isinstance(model, Invertible):
        flow = lambda given: model.distribution(state, given)
        draw = lambda keys, given: jax.vmap(lambda key: flow(None).distribution.sample(seed=key))(keys)
        decode = lambda z, given: flow(given).bijector.forward(z)
        return Space("z", draw, decode, lambda batch: model.latent(state, batch)[0])
    raise ValueError("this model has no latent vector from which an image is made: that is for GANs, VAEs and flows")


def spherical(a: Array, b: Array, share: Array | float) -> Array:
    """Spherical interpolation (White 2016) from points a (n, *shape) to b; share: 0 for a, 1 for b, (n,) or one."""
    flat_a, flat_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    unit = lambda v: v / jnp.maximum(jnp.linalg.norm(v, axis=1, keepdims=True), 1e-12)
    cosine = jnp.clip(jnp.sum(unit(flat_a) * unit(flat_b), axis=1), -1, 1)
    angle = jnp.maximum(jnp.arccos(cosine), 1e-4)  # at nearly equal directions it is linear
    share = jnp.broadcast_to(share, (len(a),))
    from_a, from_b = jnp.sin((1 - share) * angle) / jnp.sin(angle), jnp.sin(share * angle) / jnp.sin(angle)
    return (from_a[:, None] * flat_a + from_b[:, None] * flat_b).reshape(a.shape)


def interpolate(space: Space, points: Array, frames: int, loop: bool = False) -> Array:
    """(m, *shape) points on the way through `points` (n, *shape), with `frames` steps from each to the next.

    loop: and back to the first, which is not repeated at the end.
    """
    ends = jnp.roll(points, -1, axis=0) if loop else points[1:]
    starts = points if loop else points[:-1]
    share = jnp.tile(jnp.arange(frames) / frames, len(starts))
    a, b = (jnp.repeat(these, frames, axis=0) for these in (starts, ends))
    weights = share.reshape(-1, *[1] * (points.ndim - 1))
    between = spherical(a, b, share) if space.curved else (1 - weights) * a + weights * b
    return between if loop else jnp.concatenate([between, points[-1:]])


def layers_of(text: str, styles: int) -> tuple[int, ...]:
    """Layers of a style: "coarse", "middle", "fine" (thirds), "all", or numbers from 0 such as "0-1,3"."""
    if text == "all":
        return tuple(range(styles))
    if text in GROUPS:
        bounds = [round(i * styles / 3) for i in range(4)]
        at = GROUPS.index(text)
        return tuple(range(bounds[at], bounds[at + 1]))
    try:
        found = numbers_of(text)
    except ValueError:
        found = []
    if not found or max(found) >= styles:
        said = f'are coarse, middle, fine, all, or numbers from 0 to {styles - 1} such as "0-1,{styles - 1}"'
        raise ValueError(f"layers {said}, got {text!r}")
    return tuple(found)


def numbers_of(text: str, name: str = "seeds", most: int = 100_000) -> list[int]:
    """Whole numbers from ranges such as "0-63,100", in order and without repeats. Raises ValueError."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f'{name} are numbers and ranges such as "0-63,100", got {text!r}')
        if max(int(first), int(last or 0)) >= 2**32:
            raise ValueError(f"{name} must be below 2^32, got {part.strip()}")
        if dash and int(last) < int(first):
            raise ValueError(f"{name}: {part.strip()} goes backwards")
        if dash and int(last) - int(first) >= most:
            raise ValueError(f"{name}: at most {most:,} at once, got {part.strip()}")
        found += range(int(first), int(last if dash else first) + 1)
    if len(found) > most:
        raise ValueError(f"{name}: at most {most:,} at once, got {len(found):,}")
    return list(dict.fromkeys(found))


def mix(rows: Array, columns: Array, layers: Sequence[int]) -> Array:
    """(r, c, styles, width): ws of rows (r, styles, width) with those of columns (c, ...) in these layers.

    Style mixing (Karras et al. 2019, arXiv:1812.04948, figure 3).
    """
    chosen = jnp.zeros(rows.shape[1], bool).at[jnp.array(layers, jnp.int32)].set(True)
    return jnp.where(chosen[:, None], columns[None], rows[:, None])


class Projection(NamedTuple):
    """Points whose images are close to given ones."""

    points: Array  # (n, *shape)
    images: Array  # (n, *x)
    distances: np.ndarray  # (steps, n) mean squared distances of pixels


def project(
    space: Space,
    images: Array,
    condition: Batch | None,
    key: Array,
    start: Array | None = None,
    shared: bool = False,
    steps: int = 500,
    rate: float = 0.1,
    features: Callable[[Array], Array] | None = None,
    noise: float = 0.05,
    report: Callable[[int], None] = lambda step: None,
) -> Projection:
    """Points of a space whose images are closest to `images` (n, *x), by Adam (Karras et al. 2020, appendix D).

    The distance is the space's own cost, else the mean squared difference of pixels at full size and at sizes halved
    down to 8, and of `features`, divided by their mean square. start: first points; by default the mean of 1,000 draws.
    shared: all layers of a style keep one w. The rate rises over the first 20th and falls over the last quarter of the
    steps. noise: of the mean distance of draws from their mean, the deviation of noise that is added to the points at
    first, and no more after three quarters of the steps. The noise of the layers stays fixed.
    """
    drawn = space.draw(jax.random.split(fold_in(key, "draws"), 1000), _repeated(condition, 1000))
    deviation = jnp.sqrt(jnp.mean(jnp.sum((drawn - drawn.mean(axis=0)) ** 2, axis=-1)))
    points = jnp.broadcast_to(drawn.mean(axis=0), (len(images), *drawn.shape[1:])) if start is None else start
    points = points[:, :1] if shared else points
    whole = lambda points: jnp.repeat(points, drawn.shape[1], axis=1) if shared else points
    wanted = None if features is None else features(images)

    def distance(points: Array) -> tuple[Array, Array]:
        made = space.decode(whole(points), condition).astype(jnp.float32)
        pixels = jnp.mean((made - images.astype(jnp.float32)).reshape(len(images), -1) ** 2, axis=1)
        if space.cost is not None:
            return space.cost(points, images, condition).sum(), pixels
        total = sum(_scales(made, images), pixels)
        if features is not None:
            apart = jnp.mean((features(made) - wanted).reshape(len(images), -1) ** 2, axis=1)
            total += apart / jnp.maximum(jnp.mean(wanted**2), 1e-12)
        return total.sum(), pixels

    def schedule(step: Array) -> Array:
        share = step / steps
        down = jnp.minimum(1.0, (1 - share) / 0.25)
        return rate * (0.5 - 0.5 * jnp.cos(down * jnp.pi)) * jnp.minimum(1.0, (share + 1 / steps) / 0.05)

    optimizer = optax.adam(schedule)

    @jax.jit
    def several(carry: tuple[Array, Any], numbers: Array) -> tuple[tuple[Array, Any], Array]:
        def one(carry, step):
            points, moments = carry
            scale = noise * deviation * jnp.maximum(0.0, 1 - step / steps / 0.75) ** 2
            moved = points + scale * jax.random.normal(fold_in(key, step), points.shape)
            gradient, pixels = jax.grad(distance, has_aux=True)(moved)
            update, moments = optimizer.update(gradient, moments)
            return (optax.apply_updates(points, update), moments), pixels

        return lax.scan(one, carry, numbers)

    carry, history = (points, optimizer.init(points)), []
    for first in range(0, steps, 25):
        numbers = jnp.arange(first, min(first + 25, steps))
        carry, seen = several(carry, numbers)
        history.append(np.asarray(seen))
        report(len(numbers))
    points = whole(carry[0])
    return Projection(points, jax.jit(space.decode)(points, condition), np.concatenate(history))


def _scales(made: Array, images: Array) -> list[Array]:
    """Mean squared differences of images halved once, twice, ... down to a side of 8."""
    found = []
    while made.ndim == 4 and min(made.shape[1:3]) >= 16:
        halve = lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
        made, images = halve(made), halve(images)
        found.append(jnp.mean((made - images).reshape(len(images), -1) ** 2, axis=1))
    return found


def _repeated(condition: Batch | None, n: int) -> Batch | None:
    """The conditions of n examples, those given in turn."""
    return None if not condition else {name: a[jnp.arange(n) % len(a)] for name, a in condition.items()}


def principal_directions(points: Array, n: int) -> tuple[Array, Array]:
    """(n, D) unit directions of the largest variance of points (N, D), and their deviations (n,).

    GANSpace (Harkonen et al. 2020, arXiv:2004.02546), where the points are ws.
    """
    centered = points - points.mean(axis=0)
    _, singular, directions = jnp.linalg.svd(centered, full_matrices=False)
    return directions[:n], singular[:n] / jnp.sqrt(len(points))
