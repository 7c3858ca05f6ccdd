"""VQ-VAE: an autoencoder with discrete latents from a learned codebook (van den Oord, Vinyals & Kavukcuoglu 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import Batch, Extra, Mean, Objective, Params, PyTree, State, fold_in
from gen_jax.models.common.arrays import sum_except_batch
from gen_jax.models.common.autoregressive import Sampling, generate
from gen_jax.models.common.likelihoods import check_outputs, refuse_missing

__all__ = ["VQVAE", "CodePrior"]


class CodePrior(nn.Module):
    """Autoregressive p(codes) by a recurrent network. (B, P) integers -> (B, P, K) logits."""

    codes: int
    width: int

    def setup(self):
        self.embed = nn.Embed(self.codes + 1, self.width)  # the last embedding is the start token
        self.cell = nn.GRUCell(self.width)
        self.out = nn.Dense(self.codes)

    def start(self, n: int) -> tuple[Array, Array]:
        return jnp.zeros((n, self.width)), jnp.full(n, self.codes)

    def next(self, memory: Array, before: Array) -> tuple[Array, Array]:
        """The memory after the previous code, and the logits of the next."""
        memory, h = self.cell(memory, self.embed(before))
        return memory, self.out(h)

    def __call__(self, codes_BP: Array) -> Array:
        memory, first = self.start(len(codes_BP))
        before = jnp.concatenate([first[:, None], codes_BP[:, :-1]], axis=1)
        step = nn.scan(
            lambda module, memory, before: module.next(memory, before),
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        return step(self, memory, before)[1]


@dataclass(frozen=True)
class VQVAE:
    """x ~ p(x | e), e the codebook vectors of a grid of codes with an autoregressive prior.

    encoder: a module (B, *x) -> (B, h, w, D). decoder: the reverse, to the inputs of `likelihood`. grid: h and w.
    codes: size of the codebook. commitment: weight of the commitment loss (eq. 3, beta).
    decay: of the moving averages of the codebook (appendix A.1). Dead codes, used less than `least` times the mean, are
    reset to an encoding of the batch (as in Dhariwal et al. 2020).

    The posterior is deterministic, so log p(x | codes) + log p(codes) bounds log p(x): `elbo` is comparable with other
    models.
    """

    encoder: nn.Module
    decoder: nn.Module
    likelihood: Any
    grid: tuple[int, int]
    codes: int = 64
    commitment: float = 0.25
    decay: float = 0.99
    least: float = 0.02
    prior_width: int = 128

    def __post_init__(self):
        if self.codes < 2:
            raise ValueError(f"a codebook needs at least two codes, got {self.codes}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")
        if not 0 < self.least < 1 or self.commitment < 0:
            raise ValueError(
                f"least must be in (0, 1) and commitment not negative, got {self.least} and {self.commitment}"
            )

    @cached_property
    def prior(self) -> CodePrior:
        return CodePrior(self.codes, self.prior_width)

    @property
    def discrete(self) -> bool:
        """Whether the likelihood is a probability of integers."""
        return self.likelihood.discrete

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        x = self.likelihood.normalize(batch["x"])
        encoder = self.encoder.init(fold_in(key, "encoder"), x[:1])
        z_BHWD = self.encoder.apply(encoder, x)
        if z_BHWD.ndim != 4 or z_BHWD.shape[1:3] != tuple(self.grid):
            raise ValueError(
                f"codes on a grid {self.grid} need an encoder that makes (*grid, D), not {z_BHWD.shape[1:]}"
            )
        made, decoder = self.decoder.init_with_output(fold_in(key, "decoder"), z_BHWD[:1])
        check_outputs(self.likelihood, x[:1], made)
        prior = self.prior.init(fold_in(key, "prior"), jnp.zeros((1, math.prod(self.grid)), jnp.int32))
        networks = {"encoder": encoder, "decoder": decoder, "prior": prior}
        some = _some(z_BHWD, self.codes, fold_in(key, "codebook"))
        extra = {"codebook": some, "counts": jnp.ones(self.codes, some.dtype), "sums": some}
        own = self.likelihood.init()
        params = {name: variables["params"] for name, variables in networks.items()}
        return {"vqvae": params | ({"likelihood": own} if own else {})}, extra

    def unsupported(self, batch: Batch) -> str:
        """A message if the batch lies outside the support, else ""."""
        return refuse_missing(batch["x"]) or self.likelihood.unsupported(batch["x"])

    def _encode(self, params: PyTree, codebook: Array, x: Array) -> tuple[Array, Array]:
        """Encodings (B, h, w, D) and the nearest codes (B, h, w)."""
        z_BHWD = self.encoder.apply({"params": params["encoder"]}, self.likelihood.normalize(x))
        distance = jnp.sum(codebook**2, axis=1) - 2 * z_BHWD @ codebook.T
        return z_BHWD, jnp.argmin(distance, axis=-1)

    def _decode(self, params: PyTree, e_BHWD: Array):
        outputs = self.decoder.apply({"params": params["decoder"]}, e_BHWD)
        return self.likelihood(outputs, params.get("likelihood"))

    def _log_prior(self, params: PyTree, codes_BHW: Array) -> Array:
        """(B,) log p(codes)."""
        codes = codes_BHW.reshape(len(codes_BHW), -1)
        logits = self.prior.apply({"params": params["prior"]}, codes)
        return jnp.take_along_axis(jax.nn.log_softmax(logits), codes[..., None], axis=-1).sum(axis=(1, 2))

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        x, codebook = batch["x"], state.extra["codebook"]
        z_BHWD, codes = self._encode(params, codebook, x)
        e_BHWD = codebook[codes]
        pixels = self._decode(params, z_BHWD + lax.stop_gradient(e_BHWD - z_BHWD))
        log_likelihood = sum_except_batch(pixels.log_prob(x))
        log_prior = self._log_prior(params, codes)
        distance = sum_except_batch((z_BHWD - e_BHWD) ** 2)
        used = jax.nn.one_hot(codes.reshape(-1), self.codes, dtype=codebook.dtype)
        share = used.mean(axis=0)
        metrics = {
            "reconstruction": Mean.of(-log_likelihood),
            "code_nats": Mean.of(-log_prior),
            "commitment": Mean.of(distance),
            "codes_used": Mean.of(jnp.mean(share > 0)),
            "perplexity": Mean.of(jnp.exp(jax.scipy.special.entr(share).sum())),
        }
        extra = self._moved(state.extra, lax.stop_gradient(z_BHWD), used, key)
        return jnp.mean(self.commitment * distance - log_likelihood - log_prior), (extra, metrics)

    def unpenalized(self) -> VQVAE:
        """The same model trained by its bound."""
        return replace(self, commitment=0.0)

    def _moved(self, extra: Extra, z_BHWD: Array, used: Array, key: Array) -> Extra:
        """The updated codebook: moving averages of the encodings assigned to each code (appendix A.1, eq. 6 to 8)."""
        z = z_BHWD.reshape(-1, z_BHWD.shape[-1])
        counts = self.decay * extra["counts"] + (1 - self.decay) * used.sum(axis=0)
        sums = self.decay * extra["sums"] + (1 - self.decay) * used.T @ z
        dead = counts < self.least * counts.mean()
        fresh = _some(z_BHWD, self.codes, key)
        even = jnp.full_like(counts, counts.mean())
        counts = jnp.where(dead, even, counts)
        sums = jnp.where(dead[:, None], fresh * even[:, None], sums)
        return {"codebook": sums / counts[:, None], "counts": counts, "sums": sums}

    @property
    def objectives(self) -> Sequence[Objective]:
        return (Objective("vqvae", self.loss),)

    def elbo(self, state: State, batch: Batch, key: Array | None = None) -> Array:
        """(B,) log p(x | codes) + log p(codes) in nats."""
        params, codebook = state.params["vqvae"], state.extra["codebook"]
        _, codes = self._encode(params, codebook, batch["x"])
        return sum_except_batch(self._decode(params, codebook[codes]).log_prob(batch["x"])) + self._log_prior(
            params, codes
        )

    def encode(self, state: State, batch: Batch) -> Array:
        """(B, h, w) the codes of x."""
        return self._encode(state.params["vqvae"], state.extra["codebook"], batch["x"])[1]

    def start(self, params: Params, condition: PyTree, n: int, size: int) -> tuple[Array, Array]:
        """The initial memory of the code prior for n grids, and the code (n,) that stands before the first."""
        return self.prior.start(n)

    def next(self, params: Params, condition: PyTree, cache: Array, token: Array) -> tuple[Array, Array]:
        """The memory after code `token` (n,), and the logits (n, codes) of the next."""
        return self.prior.apply({"params": params["vqvae"]["prior"]}, cache, token, method=CodePrior.next)

    def sample(
        self, state: State, key: Array, n: int, condition: Batch | None = None, sampling: Sampling = Sampling()
    ) -> Batch:
        """n samples, with codes drawn autoregressively; see `common.autoregressive.Sampling`."""
        params = state.params["vqvae"]
        memory, first = self.start(state.params, condition, n, math.prod(self.grid))
        codes = generate(
            partial(self.next, state.params, condition), memory, first, key, math.prod(self.grid), sampling
        )
        codes = codes.reshape(n, *self.grid)
        x = self._decode(params, state.extra["codebook"][codes]).sample(seed=fold_in(key, "x"))
        return {"x": x, "codes": codes}

    def resample(self, state: State, batch: Batch, key: Array) -> Array:
        """Draws from p(x | codes of x)."""
        codes = self.encode(state, batch)
        return self._decode(state.params["vqvae"], state.extra["codebook"][codes]).sample(seed=key)

    def reconstruct(self, state: State, batch: Batch) -> Array:
        """The mean of p(x | codes of x)."""
        codes = self.encode(state, batch)
        return self._decode(state.params["vqvae"], state.extra["codebook"][codes]).mean()


def _some(z_BHWD: Array, n: int, key: Array) -> Array:
    """(n, D) encodings, drawn at random."""
    z = z_BHWD.reshape(-1, z_BHWD.shape[-1])
    return z[jax.random.randint(key, (n,), 0, len(z))]
