"""Pictures. A plot is a function `(model, state, split, key) -> matplotlib Figure`; configs list those they want.

Matplotlib is imported when the first picture is drawn, and without a window system.
"""

from gen_jax.plots.figures import (
    PlotFn,
    density,
    learning_curves,
    reconstructions,
    samples,
    scatter,
    show,
    tiled,
)
from gen_jax.plots.flows import flow_density, latent_space, temperatures, warped_grid
from gen_jax.plots.gan import generator_density, noise_interpolations, real_and_fake
from gen_jax.plots.hmm import rolls, state_sequence, states
from gen_jax.plots.latents import (
    imputations,
    interpolations,
    latent_scatter,
    latent_usage,
    manifold,
    traversals,
)
from gen_jax.plots.mixtures import components, restarts
from gen_jax.profiling.charts import roofline, scaling
