"""Random command lines and data: never a traceback, the right exit code, never a wrong number.

60 cases in `make test`, always the same ones; 300 new ones in `make test-all`.
"""

import contextlib
import csv
import io
import math
import re
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_runs import trained

from gen_jax.algorithms import em
from gen_jax.cli.main import main
from gen_jax.configs import load as load_config
from gen_jax.data import load
from gen_jax.errors import UserError, exits
from gen_jax.files import read_json
from gen_jax.loop import fit
from gen_jax.models.mixture import GMM
from gen_jax.reopen import open_run

CONFIG = str(Path(__file__).parent / "configs" / "knobs.py")
CASES = pytest.mark.parametrize("cases", [15, pytest.param(75, marks=pytest.mark.slow)])  # of each of four laws


def over(cases, **strategies):
    """Runs a function on random arguments, the same ones for a few cases."""
    quick = cases < 50
    chosen = settings(
        max_examples=cases,
        derandomize=quick,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return lambda function: chosen(given(**strategies)(function))()


def said(*words):
    """The exit code of a command and what it printed to stderr."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["gen_jax", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(SystemExit) as ended:
                exits(main)
    finally:
        sys.argv = before
    return ended.value.code, err.getvalue()


def check_refusal(code, err, words):
    """A usage error is one line that begins with `error: `; nothing else ends a command but success."""
    assert code in (0, 2), (code, err, words)
    assert "Traceback" not in err, (err, words)
    if code == 2:
        assert err.startswith("error: ") and "\n" not in err.strip("\n").split("error: ")[-1].strip(), (err, words)


TEXTS = st.one_of(
    st.sampled_from(
        ["", "0", "1", "3", "-1", "1e309", "nan", "inf", "-inf", "None", "True", "0.5", "a" * 300, "--", "%s"]
    ),
    st.text(max_size=12).filter(lambda text: "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)),
)
KNOBS = tuple(load_config(CONFIG).defaults)
NAMES = st.one_of(
    st.sampled_from([*KNOBS, "seed", "seeds", "devices", "stream", "no-noise", "no-no-noise", "track", "profile"]),
    st.text(alphabet="abcdefghij-_", min_size=1, max_size=10),
)


@CASES
def test_any_knobs_train_a_run_that_comes_back_or_are_refused(cases):
    @over(cases, pairs=st.lists(st.tuples(NAMES, st.one_of(st.none(), TEXTS)), max_size=3))
    @example(pairs=[("clip", "inf")])
    def law(pairs):
        words = [word for name, value in pairs for word in ([f"--{name}"] if value is None else [f"--{name}", value])]
        with tempfile.TemporaryDirectory() as folder:
            fixed = ["--devices", "1", "--no-progress", "--workdir", f"{folder}/run"]
            code, err = said("train", CONFIG, *fixed, *words)
            if "--help" in words or "-h" in words:
                return
            check_refusal(code, err, words)
            if code == 2:
                assert not (Path(folder) / "run" / "checkpoints").exists()
                return
            run, warning = open_run(Path(folder) / "run")
            assert not warning and run.config.recorded() == read_json(Path(folder) / "run" / "run.json")["knobs"]
            assert int(run.state().step) == run.experiment.steps

    del law


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained("gmm_blobs", tmp_path_factory.mktemp("fuzz"))


OPTIONS = {
    "evaluate": ("metrics", "split", "samples", "seed", "step", "member", "encoder"),
    "sample": ("n", "seed", "seeds", "step", "member", "label", "out"),
    "plot": ("out",),
    "report": ("out",),
    "export": ("format", "step", "member"),
    "compare": ("split", "samples", "seed", "data", "encoder"),
    "animate": ("name", "seconds", "out"),
}


@CASES
def test_any_options_of_commands_work_or_are_refused(cases, run):
    command = st.sampled_from(sorted(OPTIONS)).flatmap(
        lambda name: st.tuples(st.just(name), st.lists(st.tuples(st.sampled_from(OPTIONS[name]), TEXTS), max_size=2))
    )

    @over(cases, chosen=command)
    def law(chosen):
        name, options = chosen
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            shutil.copytree(run, "run")
            words = [name, "run", *(["out"] if name == "export" else [])]
            words += [word for option, value in options for word in (f"--{option}", value)]
            check_refusal(*said(*words), words)

    del law


KINDS = ("uint8", "int64", "float16", "float32", "float64", ">f4", ">i4", "longdouble", "bool")


@CASES
def test_any_arrays_give_the_right_mean_or_are_refused(cases):
    """One Gaussian after one step of EM has the moments of its data, whatever form the data has."""

    @over(
        cases,
        seed=st.integers(0, 99),
        kind=st.sampled_from(KINDS),
        shape=st.sampled_from([(9, 2), (9, 3), (9, 1), (9,), (9, 2, 2), (0, 2), (1, 2)]),
        form=st.sampled_from(["array", "list", "reversed", "fortran"]),
        weight=st.sampled_from(["", "ones", "some", "negative", "short", "none"]),
        spoiled=st.sampled_from(["", "", "nan", "inf"]),
    )
    def law(seed, kind, shape, form, weight, spoiled):
        rng = np.random.default_rng(seed)
        x = np.asarray(np.round(20 * rng.random(shape)), kind)
        if spoiled and x.dtype.kind == "f" and x.size:
            x.flat[0] = math.nan if spoiled == "nan" else math.inf
        right = np.asarray(x, np.float64)
        data = {"x": {"array": x, "list": x.tolist(), "reversed": x[::-1][::-1], "fortran": np.asfortranarray(x)}[form]}
        n = shape[0]
        some = {"ones": np.ones(n), "some": rng.integers(0, 3, n) + (np.arange(n) < 4), "negative": -np.ones(n)}
        if weight:
            data["weight"] = {**some, "short": np.ones(max(n - 1, 0)), "none": None}[weight]
        try:
            state = fit(em(GMM(1)), data, steps=1)
        except (UserError, ValueError) as error:
            assert str(error) and "\n" not in str(error)
            return
        assert np.isfinite(right).all() and n > 0 and weight not in ("negative", "short", "none"), (kind, shape, weight)
        weights = np.asarray(data.get("weight", np.ones(n)), np.float64)
        expected = np.average(right.reshape(n, -1), axis=0, weights=weights)
        np.testing.assert_allclose(np.asarray(state.params["gmm"]["means"][0]), expected, rtol=1e-4, atol=1e-4)

    del law


CELLS = st.one_of(
    st.integers(-1000, 1000).map(str),
    st.floats(-1e3, 1e3, width=32).map(repr),
    st.sampled_from(["", "NA", "nan", "inf", " 3", "1,5", "abc", "é", '"', "1e999", "0x10", "-0", "1_000"]),
)


@CASES
def test_any_table_is_read_as_it_is_written_or_refused(cases):
    """Cells that are numbers come back as these; no row is lost or moved against another."""

    @over(
        cases,
        rows=st.integers(2, 4).flatmap(
            lambda k: st.lists(st.lists(CELLS, min_size=k, max_size=k), min_size=4, max_size=30)
        ),
        ending=st.sampled_from(["\n", "\r\n"]),
        separator=st.sampled_from([",", ",", ";", "\t"]),
    )
    def law(rows, ending, separator):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "table.csv"
            with open(path, "w", newline="") as file:
                lines = csv.writer(file, lineterminator=ending, delimiter=separator)
                lines.writerow([f"column{i}" for i in range(len(rows[0]))])
                lines.writerows(rows)
            try:
                data = load(f"{path}?missing=keep")
            except UserError as error:
                assert "\n" not in str(error) and re.search("table", str(error))
                return
            columns = [int(name.removeprefix("column")) for name in data.info.columns]
            kinds = data.info.categories or ((),) * len(columns)
            read = np.concatenate([np.asarray(split["x"], np.float64) for split in data.splits.values()])
            for place, (column, names) in enumerate(zip(columns, kinds)):
                if names:
                    continue
                wanted = sorted(v for row in rows if math.isfinite(v := _number(row[column])))
                found = sorted(v for v in read[:, place] if math.isfinite(v))
                np.testing.assert_allclose(found, np.asarray(wanted, np.float32), rtol=1e-5, err_msg=str(rows))

    del law


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
