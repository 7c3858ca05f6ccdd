"""GPT-2's files: what is written is read back, others are refused; `transformers` agrees, where it is installed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.core import State
from gen_jax.errors import UserError
from gen_jax.models.text import gpt2, modern_lm
from gen_jax.models.text.huggingface import load_gpt2, save_gpt2

X = np.random.default_rng(0).integers(0, 30, (2, 13)).astype(np.int32)


def saved(folder, **more):
    model = gpt2(31, 30, 12, 16, 2, 2, bias=True, activation="gelu_tanh", std=0.3, **more)
    params, _ = model.init(jax.random.key(0), {"x": X})
    noisy = lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape)  # biases and scales too
    params = jax.tree.map(noisy, params)
    save_gpt2(folder, model, params)
    return model, params


def logits(model, params):
    return np.asarray(model.logits(State(jnp.int32(0), None, params, (), {}), X[:, :-1]))


def test_what_is_written_is_read_back(tmp_path):
    model, params = saved(tmp_path)
    again, read = load_gpt2(tmp_path)
    assert again.end == 30 and again.context == 12
    jax.tree.map(np.testing.assert_array_equal, read, dict(params))
    np.testing.assert_allclose(logits(again, read), logits(model, params), rtol=1e-5, atol=1e-5)
    without = gpt2(31, 30, 12, 16, 2, 2, activation="gelu", std=0.3)
    params, _ = without.init(jax.random.key(0), {"x": X})
    save_gpt2(tmp_path / "no biases", without, params)
    again, read = load_gpt2(tmp_path / "no biases")
    np.testing.assert_allclose(logits(again, read), logits(without, params), rtol=1e-5, atol=1e-5)


def test_other_models_and_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="other parts"):
        save_gpt2(tmp_path, modern_lm(31, 30, 12, 16, 2, 2), {})
    with pytest.raises(UserError, match="does not hold a GPT-2"):
        load_gpt2(tmp_path / "nowhere")
    saved(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="llama"):
        load_gpt2(tmp_path)


def test_transformers_computes_the_same_logits(tmp_path):
    transformers = pytest.importorskip("transformers", reason="a peer of the benchmarks, not installed")
    import torch

    model, params = saved(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found = theirs(torch.from_numpy(X[:, :-1].astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(found, logits(model, params), atol=1e-4)
    theirs.save_pretrained(tmp_path / "again", safe_serialization=True)
    again, read = load_gpt2(tmp_path / "again")
    np.testing.assert_allclose(logits(again, read), found, atol=1e-4)
