"""Weights of GPT-2 in the files of Hugging Face: config.json and model.safetensors, with biases and a tied head."""

from __future__ import annotations

import json
import operator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gen_jax.core import Params, PyTree
from gen_jax.errors import UserError
from gen_jax.models.common.transformer import Stack, gpt2_parts
from gen_jax.models.text.language_model import Embedding, LanguageModel

__all__ = ["load_gpt2", "save_gpt2"]

_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}  # ours: theirs
_NORMS = {"norm": "ln_1", "mlp_norm": "ln_2"}
_KERNELS = {"out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
_HEADS = ("query", "key", "value")


def save_gpt2(folder: Path, model: Any, params: Params) -> None:
    """Writes a model with GPT-2's parts; layers without biases get biases of 0. Raises UserError for other parts."""
    from safetensors.numpy import save_file

    _check(model)
    parts, weights = model.stack.parts, jax.tree.map(np.asarray, params["lm"])
    layers, found = weights["stack"]["layers"], {}
    bias = lambda layer, size: layer.get("bias", np.zeros(size, np.float32))
    for i in range(model.stack.depth):
        layer = jax.tree.map(operator.itemgetter(i), layers)
        for ours, theirs in _NORMS.items():
            found[f"h.{i}.{theirs}.weight"] = layer[ours]["scale"]
            found[f"h.{i}.{theirs}.bias"] = bias(layer[ours], parts.width)
        heads = [layer["heads"][name] for name in _HEADS]
        found[f"h.{i}.attn.c_attn.weight"] = np.concatenate([head["kernel"] for head in heads], axis=1)
        found[f"h.{i}.attn.c_attn.bias"] = np.concatenate([bias(head, parts.width) for head in heads])
        for ours, theirs in _KERNELS.items():
            found[f"h.{i}.{theirs}.weight"] = layer[ours]["kernel"]
            found[f"h.{i}.{theirs}.bias"] = bias(layer[ours], layer[ours]["kernel"].shape[1])
    found["wte.weight"] = weights["embedding"]["tokens"][: model.vocabulary]
    found["wpe.weight"] = weights["embedding"]["positions"]
    found["ln_f.weight"] = weights["stack"]["norm"]["scale"]
    found["ln_f.bias"] = bias(weights["stack"]["norm"], parts.width)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"transformer.{name}": np.ascontiguousarray(a, np.float32) for name, a in found.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(model), indent=2) + "\n")


def _config(model: LanguageModel) -> dict[str, Any]:
    parts = model.stack.parts
    sizes = {"n_embd": parts.width, "n_head": parts.heads, "n_layer": model.stack.depth, "n_inner": parts.inner}
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **sizes,
        "n_positions": model.context,
        "vocab_size": model.vocabulary,
        "activation_function": _ACTIVATIONS[parts.activation],
        "layer_norm_epsilon": parts.epsilon,
        "bos_token_id": model.end,
        "eos_token_id": model.end,
        "tie_word_embeddings": True,
        **{f"{name}_pdrop": parts.dropout for name in ("attn", "embd", "resid")},
    }


def _check(model: Any) -> None:
    wrong = "it is no language model"
    if isinstance(model, LanguageModel):
        parts, embedding = model.stack.parts, model.embedding
        simple = (parts.kv_heads, parts.rotary, parts.qk_norm, parts.window, parts.relative, embedding.soft_cap)
        fine = parts.norm == "layer" and parts.scales and parts.scaled and not any(simple) and not embedding.normed
        fine = fine and parts.size * parts.heads == parts.width
        wrong = (
            ""
            if fine and embedding.positions == "learned" and embedding.tied
            else "it has other parts than GPT-2, which `gpt_nano` has"
        )
        wrong = wrong or ("" if parts.activation in _ACTIVATIONS else f"GPT-2 has no {parts.activation}")
    if wrong:
        raise UserError(f"the model cannot be written as a GPT-2: {wrong}")


def load_gpt2(folder: Path, end: int | None = None) -> tuple[LanguageModel, Params]:
    """The model and parameters of a folder with config.json and model.safetensors.

    end: the token between documents; by default that of the files.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} does not hold a GPT-2, config.json and model.safetensors: {error}") from None
    activations = {theirs: ours for ours, theirs in _ACTIVATIONS.items()}
    if config.get("model_type") != "gpt2" or config.get("activation_function", "gelu_new") not in activations:
        raise UserError(f"{folder} holds a {config.get('model_type')}, not a GPT-2")
    unusual = ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention")
    if missing := {"n_embd", "n_head", "n_layer", "n_positions", "vocab_size"} - config.keys():
        raise UserError(f"{folder}/config.json lacks {', '.join(sorted(missing))}")
    given = any(config.get(name) for name in unusual)
    if given or not config.get("scale_attn_weights", True) or not config.get("tie_word_embeddings", True):
        raise UserError(f"{folder} holds a GPT-2 with other attention or an untied head, which is not read")
    parts = gpt2_parts(
        config["n_embd"],
        config["n_head"],
        hidden=config.get("n_inner") or 0,
        activation=activations[config.get("activation_function", "gelu_new")],
        epsilon=config.get("layer_norm_epsilon", 1e-5),
        bias=True,
    )
    embedding = Embedding(config["vocab_size"], config["n_positions"], parts)
    end = config.get("eos_token_id") if end is None else end
    model = LanguageModel(embedding, Stack(parts, config["n_layer"]), config["vocab_size"] - 1 if end is None else end)
    tensors = {name.removeprefix("transformer."): a for name, a in tensors.items()}
    try:
        return model, {"lm": _params(tensors, config["n_layer"])}
    except KeyError as error:
        raise UserError(f"{folder}/model.safetensors lacks {error}") from None


def _params(tensors: dict[str, np.ndarray], depth: int) -> PyTree:
    def layer(i: int) -> PyTree:
        get = lambda name: {"kernel": tensors[f"h.{i}.{name}.weight"], "bias": tensors[f"h.{i}.{name}.bias"]}
        joined = get("attn.c_attn")
        kernels, biases = (np.split(joined[name], 3, axis=-1) for name in ("kernel", "bias"))
        heads = {name: {"kernel": k, "bias": b} for name, k, b in zip(_HEADS, kernels, biases)}
        norms = {
            ours: {"scale": tensors[f"h.{i}.{theirs}.weight"], "bias": tensors[f"h.{i}.{theirs}.bias"]}
            for ours, theirs in _NORMS.items()
        }
        return {"heads": heads, **norms, **{ours: get(theirs) for ours, theirs in _KERNELS.items()}}

    layers = jax.tree.map(lambda *one: np.stack(one), *(layer(i) for i in range(depth)))
    norm = {"scale": tensors["ln_f.weight"], "bias": tensors["ln_f.bias"]}
    embedding = {"tokens": tensors["wte.weight"], "positions": tensors["wpe.weight"]}
    return {"embedding": embedding, "stack": {"layers": layers, "norm": norm}}
