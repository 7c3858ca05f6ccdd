"""Generative models in JAX: one State, one training loop, one evaluation suite."""

import importlib as _importlib
import time as _time
from typing import TYPE_CHECKING as _TYPE_CHECKING

IMPORTED = _time.time()  # when this process started importing, for start-up time reports
__version__ = "0.1.0"

if _TYPE_CHECKING:
    from gen_jax.algorithms import chunk, closed_form, descent, em, staged, stepwise_em, with_ema
    from gen_jax.applications.imputation import impute
    from gen_jax.core import Mean, Objective, State, averaged, fold_in
    from gen_jax.data import Resident, Streamed, load
    from gen_jax.evaluation import Split, evaluator, suite
    from gen_jax.experiment import Experiment
    from gen_jax.loop import Hook, fit
    from gen_jax.models.autoregressive import MADE
    from gen_jax.models.flow import Flow, FlowMatching
    from gen_jax.models.gan import GAN
    from gen_jax.models.hmm import HMM
    from gen_jax.models.mixture import GMM
    from gen_jax.models.text import LanguageModel, NGram, TextToText
    from gen_jax.models.vae import HVAE, VAE, VQVAE
    from gen_jax.restarts import best_restart, member, population, until_converged
    from gen_jax.sharding import Layout

_MODULES = {
    "algorithms": ("chunk", "closed_form", "descent", "em", "staged", "stepwise_em", "with_ema"),
    "applications.imputation": ("impute",),
    "core": ("Mean", "Objective", "State", "averaged", "fold_in"),
    "data": ("Resident", "Streamed", "load"),
    "evaluation": ("Split", "evaluator", "suite"),
    "experiment": ("Experiment",),
    "loop": ("Hook", "fit"),
    "models.autoregressive": ("MADE",),
    "models.flow": ("Flow", "FlowMatching"),
    "models.gan": ("GAN",),
    "models.hmm": ("HMM",),
    "models.mixture": ("GMM",),
    "models.text": ("LanguageModel", "NGram", "TextToText"),
    "models.vae": ("HVAE", "VAE", "VQVAE"),
    "restarts": ("best_restart", "member", "population", "until_converged"),
    "sharding": ("Layout",),
}
_OWNERS = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_OWNERS)


def __getattr__(name: str):
    """Imports a public name on first access: `import gen_jax` alone loads nothing."""
    if name not in _OWNERS:
        raise AttributeError(f"module 'gen_jax' has no attribute {name!r}")
    value = vars(_importlib.import_module(f"gen_jax.{_OWNERS[name]}"))[name]
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "IMPORTED", "__version__"]
