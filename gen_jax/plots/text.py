"""Plots of text: samples, loss by position, calibration, attention."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import Array

from gen_jax.core import State
from gen_jax.data.tokenizers import read_tokenizer
from gen_jax.evaluation.metric import Split
from gen_jax.evaluation.text import texts_of
from gen_jax.models.text import LanguageModel, Translator
from gen_jax.plots.style import COLORS, new_figure, panels, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["attention_maps", "calibration", "loss_by_position", "text_samples", "text_to_text_samples"]

_WINDOWS = 256  # that pictures of predictions are computed from


@styled()
def text_samples(model: Any, state: State, split: Split, key: Array) -> Figure:
    """Four texts from the model, beside the beginnings of two windows of the split."""
    tokenizer = read_tokenizer(split.info.tokenizer)
    drawn = np.asarray(jax.jit(model.sample, static_argnums=2)(state, key, 4)["x"])
    chosen = np.linspace(0, split.size - 1, 2).astype(int)
    real = [split.arrays["x"][i, : split.arrays["length"][i]] for i in chosen]
    titles = [*(f"sample {i + 1}" for i in range(len(drawn))), *(f"{split.name}, {i + 1}" for i in range(len(real)))]
    return _page(titles, [tokenizer.text(row[:400]) for row in [*drawn, *real]])


@styled()
def text_to_text_samples(model: Any, state: State, split: Split, key: Array) -> Figure:
    """Eight sources of the split with the model's targets and the right ones."""
    tokenizer, part = read_tokenizer(split.info.tokenizer), split.part(0, 8)
    sources, targets = (texts_of(part.arrays, entry, tokenizer) for entry in ("x", "y"))
    found = [best[0].text for best in Translator(model, tokenizer, beams=1, batch=8)(state, sources)]
    mark = lambda made, right: "right" if made == right else f"should be {right}"
    texts = [f"{made}\n{mark(made, right)}" for made, right in zip(found, targets)]
    return _page([source[:240] for source in sources], [text[:600] for text in texts])


def _page(titles: list[str], texts: list[str]) -> Figure:
    """Texts below their titles, in two columns."""
    wrap = lambda text, width: "\n".join(w for line in text.split("\n") for w in textwrap.wrap(line, width) or [""])
    texts = [wrap(text.replace("$", r"\$"), 62) for text in texts]
    titles = [wrap(title.replace("$", r"\$"), 58) for title in titles]
    rows = -(-len(texts) // 2)
    heights = [
        max(t.count("\n") + s.count("\n") + 4 for t, s in zip(texts[i::rows], titles[i::rows])) for i in range(rows)
    ]
    figure, axes = new_figure(11, 0.17 * sum(heights), rows, 2, gridspec_kw={"height_ratios": heights})
    for axis in axes.flat:
        axis.axis("off")
    for axis, title, text in zip(axes.T.flat, titles, texts):
        axis.set_title(title, loc="left", color=COLORS[0])
        axis.text(0, 1, text, fontsize=8, family="monospace", va="top", transform=axis.transAxes)
    return figure


def _predictions(model: Any, state: State, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities (W, T) of the tokens of some windows, and which of them are text."""
    place = np.linspace(0, split.size - 1, min(_WINDOWS, split.size)).astype(int)
    x = np.asarray(split.arrays["x"][place], np.int32)
    there = np.arange(x.shape[1]) < np.asarray(split.arrays["length"])[place][:, None]
    return np.asarray(jax.jit(model.log_probs)(state, {"x": x}))[:, 1:], there[:, 1:]


@styled()
def loss_by_position(model: Any, state: State, split: Split, key: Array) -> Figure:
    """The mean loss by how many tokens of context a prediction has."""
    values, there = _predictions(model, state, split)
    total, count = (-values * there).sum(axis=0), there.sum(axis=0)
    groups = np.unique(np.geomspace(1, len(total), 24).astype(int))
    edges = np.concatenate([[0], groups])
    means = [total[a:b].sum() / max(1, count[a:b].sum()) for a, b in zip(edges, edges[1:])]
    figure, (axis,) = panels(1)
    axis.plot(groups, means, marker=".")
    axis.set(xscale="log", xlabel="tokens of context", ylabel="loss (nats/token)", title="loss by context")
    axis.grid(alpha=0.3)
    return figure


@styled()
def calibration(model: LanguageModel, state: State, split: Split, key: Array) -> Figure:
    """How often the most probable token is right, by the probability it was given."""
    whole = np.flatnonzero(np.asarray(split.arrays["length"]) == split.arrays["x"].shape[1])
    whole = whole if len(whole) else np.array([0])
    x = np.asarray(split.arrays["x"][whole[np.linspace(0, len(whole) - 1, min(64, len(whole))).astype(int)]], np.int32)
    probabilities = np.asarray(jax.nn.softmax(jax.jit(model.logits)(state, x[:, :-1])))
    given, right = probabilities.max(axis=-1).ravel(), (probabilities.argmax(axis=-1) == x[:, 1:]).ravel()
    group = np.minimum((given * 10).astype(int), 9)
    used = [i for i in range(10) if (group == i).any()]
    figure, (axis,) = panels(1)
    axis.plot([0, 1], [0, 1], color="0.7")
    axis.plot([given[group == i].mean() for i in used], [right[group == i].mean() for i in used], marker="o")
    axis.set(xlabel="probability of the most probable token", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    return figure


@styled()
def attention_maps(model: LanguageModel, state: State, split: Split, key: Array) -> Figure:
    """The attention weights of all heads on the first 48 tokens of a window."""
    tokens = np.asarray(split.arrays["x"][split.size // 2], np.int32)[:48]
    maps = np.asarray(jax.jit(model.attention)(state, tokens[None]))[:, 0]
    names = [read_tokenizer(split.info.tokenizer).names[i] for i in tokens]
    names = [repr(name)[1:-1].replace("$", r"\$") for name in names]
    depth, heads = maps.shape[:2]
    figure, axes = new_figure(3.4 * heads, 3.4 * depth, depth, heads)
    for layer, row in enumerate(axes):
        for head, axis in enumerate(row):
            axis.imshow(maps[layer, head], cmap="Blues", vmin=0)
            axis.set_title(f"layer {layer + 1}, head {head + 1}")
            axis.set_xticks(range(len(names)), names, fontsize=4)
            axis.set_yticks(range(len(names)), names, fontsize=4)
    return figure
