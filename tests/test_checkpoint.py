"""Checkpoints: what is kept, what is noticed, and what is never lost."""

import os
import shutil
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.checkpoint import Best, Checkpoints, digest, mean_state
from gen_jax.core import State
from gen_jax.errors import CheckpointError, UserError
from gen_jax.sharding import Layout


def state_at(step, scale=1.0, width=64):
    rng = np.random.default_rng(step)
    params = {
        "a": {"w": jnp.asarray(scale * rng.normal(size=(width, 300)), jnp.float32), "b": jnp.zeros(3, jnp.bfloat16)}
    }
    return State(jnp.int32(step), jax.random.key(7), params, {"a": (jnp.int32(step),)}, {})


def like(state, sharding=None):
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), state)


def saved(folder, steps, metrics=None, **options):
    with Checkpoints(folder, **options) as checkpoints:
        for step, row in zip(steps, metrics or [None] * len(steps)):
            checkpoints.save(step, state_at(step), row)
    return folder


def test_restores_the_newest_and_any_step(tmp_path, same):
    saved(tmp_path, [1, 2, 3])
    with Checkpoints(tmp_path, write=False) as checkpoints:
        same(checkpoints.restore(like(state_at(1))), state_at(3))
        same(checkpoints.restore(like(state_at(1)), step=2), state_at(2))
        assert checkpoints.steps == [1, 2, 3]


def test_parameters_are_averaged_over_checkpoints_and_moving_averages_left_out():
    def state(step):
        extra = {"batch_stats": {"mean": jnp.float32(step)}, "ema": {"params": {}}, "other": jnp.float32(step)}
        return State(jnp.int32(step), jax.random.key(7), {"a": jnp.full(3, 10.0 * step)}, (), extra)

    found = mean_state(state, [1, 2, 6])
    assert int(found.step) == 6 and found.extra.keys() == {"batch_stats", "other"}
    np.testing.assert_array_equal(found.params["a"], np.full(3, 30.0))
    assert float(found.extra["batch_stats"]["mean"]) == 3 and float(found.extra["other"]) == 6


def test_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.restore(like(state_at(1))) is None and checkpoints.steps == []


def test_the_state_may_be_donated_right_after_save(tmp_path, same):
    with Checkpoints(tmp_path) as checkpoints:
        state = state_at(1)
        checkpoints.save(1, state)
        jax.block_until_ready(jax.jit(lambda s: jax.tree.map(lambda a: a, s), donate_argnums=0)(state.params))
        jax.tree.map(lambda a: a.delete(), state.params)
    with Checkpoints(tmp_path) as checkpoints:
        same(checkpoints.restore(like(state_at(1))), state_at(1))


def test_keeps_the_newest_and_the_best_and_nan_is_never_best(tmp_path):
    rows = [{"loss": v} for v in (3.0, float("nan"), 2.0, float("nan"), 5.0, float("nan"), 4.0)] + [None]
    saved(tmp_path, range(1, 9), rows, keep=2, best=Best("loss", "min"))
    with Checkpoints(tmp_path, best=Best("loss", "min"), write=False) as checkpoints:
        assert checkpoints.steps == [3, 7, 8]
        assert checkpoints.best_step == 3


def test_best_may_be_the_highest(tmp_path):
    saved(tmp_path, [1, 2, 3], [{"e": -3.0}, {"e": -1.0}, {"e": -2.0}], best=Best("e", "max"))
    with Checkpoints(tmp_path, best=Best("e", "max"), write=False) as checkpoints:
        assert checkpoints.best_step == 2
    with Checkpoints(tmp_path, best=Best("other", "max"), write=False) as checkpoints:
        assert checkpoints.best_step is None


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, bad):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(1, state_at(1))
        assert not checkpoints.save(2, state_at(2, scale=float(bad)))
        assert not checkpoints.save(3, state_at(3)._replace(extra={"ema": jnp.float32(bad)}))
    assert Checkpoints(tmp_path).steps == [1]


def files_of(folder):
    return sorted(f for f in folder.rglob("*") if f.is_file())


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "zeroed":
        path.write_bytes(bytes(len(content)))
    elif content:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def assert_survives(folder, same):
    """The newest checkpoint, or the one before with a warning; never anything else."""
    with warnings.catch_warnings(record=True) as caught, Checkpoints(folder) as checkpoints:
        warnings.simplefilter("always")
        restored = checkpoints.restore(like(state_at(1)))
        step = int(restored.step)
        same(restored, state_at(step))
        if step != 3:
            assert step == 2 and any("checkpoint 3" in str(w.message) for w in caught)
            assert (folder / "damaged-3").is_dir() and checkpoints.steps == [1, 2]
            checkpoints.save(3, state_at(3))
            checkpoints.wait()
            same(checkpoints.restore(like(state_at(1))), state_at(3))
    return step


def test_one_flipped_bit_in_the_arrays_is_noticed(tmp_path, same):
    """Orbax restores wrong values without an error here."""
    saved(tmp_path, [1, 2, 3])
    largest = max(files_of(tmp_path / "3"), key=lambda f: f.stat().st_size)
    damage(largest, "flipped")
    assert assert_survives(tmp_path, same) == 2


@pytest.mark.parametrize("how", ["missing", "truncated", "zeroed", "flipped"])
def test_some_damaged_files_are_noticed_or_harmless(tmp_path, same, how):
    saved(tmp_path / "sound", [1, 2, 3])
    paths = files_of(tmp_path / "sound" / "3")
    chosen = sorted(paths, key=lambda f: -f.stat().st_size)[:2] + [f for f in paths if f.name == "_CHECKPOINT_METADATA"]
    for i, path in enumerate(chosen):
        copy = tmp_path / f"{i}"
        shutil.copytree(tmp_path / "sound", copy)
        damage(copy / path.relative_to(tmp_path / "sound"), how)
        assert_survives(copy, same)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["missing", "truncated", "zeroed", "flipped"])
def test_every_damaged_file_is_noticed_or_harmless(tmp_path, same, how):
    saved(tmp_path / "sound", [1, 2, 3])
    for i, path in enumerate(files_of(tmp_path / "sound" / "3")):
        copy = tmp_path / f"{i}"
        shutil.copytree(tmp_path / "sound", copy)
        damage(copy / path.relative_to(tmp_path / "sound"), how)
        assert_survives(copy, same)


def test_half_deleted_and_foreign_folders_do_no_harm(tmp_path, same):
    saved(tmp_path, [1, 2, 3])
    shutil.rmtree(tmp_path / "1" / "state")
    (tmp_path / "9").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "7.orbax-checkpoint-tmp").mkdir()
    with pytest.warns(UserWarning, match="checkpoint 9"), Checkpoints(tmp_path) as checkpoints:
        same(checkpoints.restore(like(state_at(1))), state_at(3))
        assert checkpoints.save(4, state_at(4))
    assert Checkpoints(tmp_path).steps[-1] == 4


def test_reading_sets_nothing_aside(tmp_path, same):
    saved(tmp_path, [1, 2])
    (tmp_path / "9").mkdir()
    with pytest.warns(UserWarning, match="checkpoint 9"), Checkpoints(tmp_path, write=False) as checkpoints:
        same(checkpoints.restore(like(state_at(1))), state_at(2))
    assert (tmp_path / "9").is_dir()


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path):
    saved(tmp_path, [1])
    shutil.rmtree(tmp_path / "1" / "state")
    with pytest.warns(UserWarning), Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match="none of the checkpoints .1. .* is sound"):
            checkpoints.restore(like(state_at(1)))


def test_failing_to_read_is_not_damage(tmp_path, monkeypatch):
    saved(tmp_path, [1, 2])
    with Checkpoints(tmp_path) as checkpoints:

        def fail(*arguments, **options):
            raise MemoryError("out of memory")

        monkeypatch.setattr(type(checkpoints._open()), "load_checkpointables", fail)
        with pytest.raises(CheckpointError, match="cannot be read: out of memory"):
            checkpoints.restore(like(state_at(1)))
        assert checkpoints.steps == [1, 2]


def test_checkpoints_know_their_settings(tmp_path, same):
    saved(tmp_path, [1], config={"lr": 0.1})
    with Checkpoints(tmp_path, config={"lr": 0.2}) as checkpoints:
        with pytest.raises(UserError, match="lr = 0.1 there, 0.2 here"):
            checkpoints.restore(like(state_at(1)))
    with Checkpoints(tmp_path, config={"lr": 0.1}) as checkpoints:
        same(checkpoints.restore(like(state_at(1))), state_at(1))


def test_another_model_is_an_error_not_damage(tmp_path):
    saved(tmp_path, [1])
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(
            UserError, match=r"params/a/w: float32\[64, 300\] in the checkpoint, float32\[32, 300\] in this run"
        ):
            checkpoints.restore(like(state_at(1, width=32)))
        half = state_at(1)
        half.params["a"]["w"] = half.params["a"]["w"].astype(jnp.bfloat16)  # orbax would cast it silently
        with pytest.raises(UserError, match="bfloat16"):
            checkpoints.restore(like(half))
        assert checkpoints.steps == [1]


def test_two_runs_cannot_write_to_one_folder(tmp_path):
    with Checkpoints(tmp_path):
        with pytest.raises(UserError, match="another run .process"):
            Checkpoints(tmp_path).__enter__()
        with Checkpoints(tmp_path, write=False):
            pass
    with Checkpoints(tmp_path):
        pass


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write checkpoints"):
        Checkpoints(tmp_path / "file" / "x").__enter__()


def test_full_disk_is_an_error_at_the_latest_when_the_run_ends(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="no space left"):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, state_at(1))
            checkpoints.save(2, state_at(2))

            def fail(timeout=None):
                raise ValueError("RESOURCE_EXHAUSTED: write: No space left on device")

            monkeypatch.setattr(checkpoints._saving, "result", fail)
    assert 1 in Checkpoints(tmp_path).steps


def test_many_saves_leave_no_files_open(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        opened = []
        for step in range(1, 9):
            checkpoints.save(step, state_at(step, width=1))
            checkpoints.wait()
            opened.append(len(os.listdir("/proc/self/fd")))
    assert opened[-1] - opened[1] <= 1, opened


def test_exception_right_after_an_asynchronous_save_loses_nothing(tmp_path, same):
    with pytest.raises(RuntimeError), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_at(1))
        raise RuntimeError("the run fails")
    with Checkpoints(tmp_path) as checkpoints:
        same(checkpoints.restore(like(state_at(1))), state_at(1))


@pytest.mark.parametrize("before, after", [(1, 4), (4, 1), (4, 2)])
def test_restores_onto_other_devices(tmp_path, same, before, after):
    layouts = [Layout(data=n, fsdp=True) for n in (before, after)]
    first, second = (layout.shardings(state_at(1), layout.mesh()) for layout in layouts)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, jax.device_put(state_at(1), first))
    target = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state_at(1), second)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(target)
    assert len(restored.params["a"]["w"].sharding.device_set) == after
    same(jax.device_get(restored._replace(key=state_at(1).key)), jax.device_get(state_at(1)))


def test_digest_sees_every_bit_and_no_sharding():
    state = state_at(1)
    spread = jax.device_put(state, Layout(data=4, fsdp=True).shardings(state, Layout(data=4).mesh()))
    assert digest(spread) == digest(state)
    flipped = np.asarray(state.params["a"]["w"]).copy()
    flipped.view(np.uint8).reshape(-1)[1234] ^= 1
    assert digest(state._replace(params={"a": {**state.params["a"], "w": flipped}})) != digest(state)
    assert digest(state._replace(key=jax.random.key(8))) != digest(state)


def test_lock_is_freed_by_a_killed_process(tmp_path):
    code = f"""
import os, signal
from gen_jax.checkpoint import Checkpoints
Checkpoints({str(tmp_path)!r}).__enter__()
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path.parent, env={**os.environ, "PYTHONPATH": str(sys.path[0])}
    )
    with Checkpoints(tmp_path):
        pass


def test_an_older_layout_is_refused_by_one_line(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("gen_jax.checkpoint.FORMAT", 1)
        saved(tmp_path, [1])
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="another version of gen_jax .layout 1"):
        checkpoints.restore(like(state_at(1)))


def test_the_unused_end_of_a_curve_may_be_nan(tmp_path, same):
    """That of `until_converged` is."""
    state = state_at(1)
    state = state._replace(extra={**state.extra, "curve": jnp.array([1.0, jnp.nan])})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(1, state)
    with Checkpoints(tmp_path) as checkpoints:
        same(checkpoints.restore(like(state)), state)
