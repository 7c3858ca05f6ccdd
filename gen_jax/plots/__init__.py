"""Plots. A plot is a function `(model, state, split, key) -> matplotlib Figure`; configs list those they want.

Matplotlib is imported when the first figure is drawn; no display is needed.
"""

from gen_jax.plots.curves import learning_curves
from gen_jax.plots.figures import (
    PlotFn,
    density,
    marginals,
    reconstructions,
    samples,
    scatter,
    show,
    tiled,
)
from gen_jax.plots.flows import flow_density, latent_space, temperatures, warped_grid
from gen_jax.plots.gan import generator_density, noise_interpolations, real_and_fake, style_mixing, truncations
from gen_jax.plots.hmm import rolls, state_sequence, states
from gen_jax.plots.human import intervals, scores_by_stimulus
from gen_jax.plots.latents import (
    imputations,
    interpolations,
    latent_scatter,
    latent_usage,
    manifold,
    traversals,
)
from gen_jax.plots.mixtures import components, restarts
from gen_jax.plots.style import caption
from gen_jax.plots.sweeps import swept
from gen_jax.plots.text import attention_maps, calibration, loss_by_position, text_samples, text_to_text_samples
from gen_jax.plots.translation import translations

__all__ = [
    "PlotFn",
    "attention_maps",
    "caption",
    "calibration",
    "components",
    "density",
    "marginals",
    "flow_density",
    "generator_density",
    "imputations",
    "interpolations",
    "intervals",
    "latent_scatter",
    "latent_space",
    "latent_usage",
    "learning_curves",
    "loss_by_position",
    "manifold",
    "noise_interpolations",
    "real_and_fake",
    "reconstructions",
    "restarts",
    "rolls",
    "samples",
    "scatter",
    "scores_by_stimulus",
    "show",
    "state_sequence",
    "states",
    "style_mixing",
    "swept",
    "temperatures",
    "text_samples",
    "text_to_text_samples",
    "tiled",
    "translations",
    "traversals",
    "truncations",
    "warped_grid",
]
