"""Composed sources: laws of sources for sources made of sources."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.algorithms import chunk
from gen_jax.core import Algorithm, Mean, Source, State
from gen_jax.data import Resident, Streamed, load
from gen_jax.data.mixing import Mixed, TokenWindows, Unpaired
from gen_jax.data.transforms import downsample, flip, jitter, on, scale, together
from gen_jax.errors import UserError
from gen_jax.experiment import Experiment
from gen_jax.loop import fit
from gen_jax.sharding import Layout

PHOTOS = {"x": np.arange(10.0, dtype=np.float32)[:, None], "label": np.arange(10)}
PAINTINGS = {"x": 100 + np.arange(7.0, dtype=np.float32)[:, None]}
TOKENS = np.arange(103)


def unpaired(kind=Resident):
    if kind is Resident:
        return Unpaired.of(x=Resident(PHOTOS, 4, seed=1), y=Resident(PAINTINGS, 4, seed=2))
    of = lambda arrays, seed: Streamed(lambda i: {k: a[i] for k, a in arrays.items()}, len(arrays["x"]), 4, seed=seed)
    return Unpaired.of(x=of(PHOTOS, 1), y=of(PAINTINGS, 2))


SOURCES = {
    "unpaired": unpaired,
    "unpaired, streamed": lambda: unpaired(Streamed),
    "mixed": lambda: Mixed.of(Resident(PHOTOS, 6, seed=1), Resident(PAINTINGS, 2, seed=2)),
    "token windows": lambda: TokenWindows(TOKENS, length=5, batch=4, seed=3),
}


def adding():
    """Sums what it sees, entry by entry."""
    total = lambda batch: sum(
        jnp.sum(a.astype(jnp.float32) * (i + 1)) for i, (_, a) in enumerate(sorted(batch.items()))
    )

    def init(key, batch):
        return State(jnp.int32(0), key, {"p": jnp.zeros(())}, (), {})

    def step(state, batch):
        p = 0.5 * state.params["p"] + total(batch)
        return state._replace(step=state.step + 1, params={"p": p}), {"sum": Mean.of(total(batch))}

    return Algorithm(init, step)


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())
def test_sources_keep_the_laws(make, same):
    """Resume is exact, chunks equal single steps, and devices equal one."""
    assert isinstance(make(), Source)
    straight = fit(adding(), make(), 9)
    same(fit(adding(), make(), 9, state=fit(adding(), make(), 4)), straight)
    same(fit(adding(), make(), 9, chunk=4), straight, rtol=1e-6)
    same(jax.device_get(fit(adding(), make(), 9, layout=Layout(data=2)).params), straight.params, rtol=1e-6)


def test_resident_and_streamed_pairs_agree(same):
    same(fit(adding(), unpaired(Streamed), 9), fit(adding(), unpaired(), 9))


def test_domains_have_lengths_and_orders_of_their_own():
    source = unpaired()
    seen = [source.batch_at(step) for step in range(14)]
    photos = Counter(float(v) for batch in seen[:10] for v in batch["x"].ravel())
    paintings = Counter(float(v) for batch in seen[:7] for v in batch["y"].ravel())
    assert set(photos) == set(range(10)) and set(paintings) == set(range(100, 107))
    assert {"x", "y", "label", "index", "y_index"} == set(seen[0])
    with pytest.raises(UserError, match="one size"):
        Unpaired.of(x=Resident(PHOTOS, 4), y=Resident(PAINTINGS, 3))


def test_mixtures_have_their_weights():
    batch = SOURCES["mixed"]().batch_at(3)
    x, origin = np.asarray(batch["x"]).ravel(), np.asarray(batch["source"])
    assert np.array_equal(x >= 100, origin == 1) and origin.sum() == 2 and "label" not in batch


def test_windows_cover_the_stream_once_per_epoch():
    source = SOURCES["token windows"]()
    per_epoch = source.windows // 4
    for epoch in range(3):
        tokens = np.concatenate([source.batch_at(epoch * per_epoch + i)["x"] for i in range(per_epoch)])
        assert np.all(np.diff(tokens, axis=1) == 1)  # consecutive
        starts = tokens[:, 0]
        assert len(set(starts)) == len(starts) and len({s % 5 for s in starts}) == 1
    offsets = {int(source.batch_at(epoch * per_epoch)["x"][0, 0]) % 5 for epoch in range(5)}
    assert offsets == set(range(5))
    with pytest.raises(UserError, match="windows of 60"):
        TokenWindows(TOKENS, 60, 4).check()


def test_transforms_of_other_entries_and_of_pairs():
    images = np.random.default_rng(0).integers(0, 256, (32, 4, 6, 1)).astype(np.uint8)
    batch = {"x": images, "y": images}
    out = on("y", scale(-1, 1))(batch, jax.random.key(0))
    assert out["y"].min() >= -1 and out["y"].max() > 0.5 and np.array_equal(out["x"], images)
    both = together(("x", "y"), flip())(batch, jax.random.key(0))
    np.testing.assert_array_equal(both["x"], both["y"])
    mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(both["x"], images)])
    assert 8 <= mirrored.sum() <= 24  # half of them
    apart = on("y", flip())(flip()(batch, jax.random.key(0)), jax.random.key(1))
    assert not np.array_equal(apart["x"], apart["y"])


def test_chunks_trace_a_composed_source_once():
    source = unpaired()
    state, _ = jax.jit(chunk(adding(), 3).step)(adding().init(jax.random.key(0), source.batch_at(0)), source)
    assert int(state.step) == 3


def test_jitter_moves_both_sides_of_a_pair_alike():
    x = np.random.default_rng(0).uniform(size=(8, 16, 12, 2)).astype(np.float32)
    moved = together(("x", "y"), jitter(1.25))({"x": x, "y": 2 * x}, jax.random.key(0))
    np.testing.assert_allclose(moved["y"], 2 * moved["x"], rtol=1e-5)
    assert moved["x"].shape == x.shape and not np.allclose(moved["x"], x)
    ramp = np.broadcast_to(np.arange(16.0, dtype=np.float32)[None, :, None, None], (8, 16, 16, 1))
    rows = np.asarray(jitter(1.25)({"x": ramp}, jax.random.key(1))["x"])[:, 2:-2, 8, 0]
    np.testing.assert_allclose(np.diff(rows, axis=1), 0.8, atol=1e-5)  # enlarged by 1.25
    assert len({float(row[0]) for row in rows}) > 2
    same = jitter(1.0)({"x": x}, jax.random.key(2))["x"]
    np.testing.assert_allclose(same, x, atol=1e-6)
    blocks = downsample(2)({"x": x}, jax.random.key(0))["x"]
    np.testing.assert_allclose(blocks[:, 1, 2], x[:, 2:4, 4:6].mean(axis=(1, 2)), rtol=1e-5)


def test_evaluation_leaves_random_changes_out():
    data = load("outlines")
    both = [scale(-1, 1), flip(), jitter()]
    split = Experiment(None, adding(), data, 1, batch=4, transforms=both).split(data, "test")
    np.testing.assert_allclose(split.head(3)["x"], np.asarray(data["test"]["x"][:3]) / 127.5 - 1, atol=1e-5)


def test_pairs_taken_apart_share_no_pair_in_training():
    whole, apart = load("twins"), load("twins", pairing="unpaired")
    x, y = apart["train"]["x"], apart.partner["train"]["x"]
    np.testing.assert_array_equal(x, whole["train"]["x"][::2])
    np.testing.assert_array_equal(y, whole["train"]["y"][1::2])
    np.testing.assert_array_equal(apart.partner["test"]["x"], whole["test"]["y"])
    np.testing.assert_array_equal(apart.partner["test"]["label"], whole["test"]["label"])
    assert apart.info.aligned and apart.digest != whole.digest
    experiment = Experiment(None, adding(), apart, 1, batch=4)
    splits = {name: experiment.split(apart, name).info.aligned for name in apart.splits}
    assert splits == {"train": False, "validation": True, "test": True}
    other = load("digits28", partner="digits28")
    assert other.partner is not None and not other.info.aligned
    with pytest.raises(UserError, match="no pairs"):
        load("digits28", pairing="unpaired")
    with pytest.raises(UserError, match="unpaired"):
        load("digits28", pairing="halves")
