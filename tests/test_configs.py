"""Config files: they are loaded as Python loads modules, and their knobs come back from the record of a run."""

import enum
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from gen_jax import Experiment, em
from gen_jax.cli.compare_runs import compared
from gen_jax.cli.train import parse, train
from gen_jax.configs import ConfigFile, load
from gen_jax.errors import UserError
from gen_jax.files import read_json
from gen_jax.models.mixture import GMM
from gen_jax.reopen import open_run
from gen_jax.workdir import default_workdir

EXPERIMENT = 'Experiment(GMM(2), em(GMM(2)), data="blobs", steps=steps, report_every=1)'
CONFIG = """
{above}
from gen_jax import Experiment, em
from gen_jax.models.mixture import GMM
{more}

def config(steps: int = 1, smoke: bool = False{knobs}) -> Experiment:
    {inside}
    return Experiment(GMM(2), em(GMM(2)), data="blobs", steps=steps, report_every=1)
"""


class Color(enum.Enum):
    RED = "r"
    BLUE = 2


def written(folder, above="", more="", knobs="", inside="pass", name="own.py"):
    path = folder / name
    path.write_text(CONFIG.format(above=above, more=more, knobs=knobs and f", {knobs}", inside=inside))
    return path


def with_knob(kind, default, annotated=True):
    """A config with one knob, beside those that every config has."""

    def config(steps=1, smoke=False, knob=default):
        return Experiment(GMM(2), em(GMM(2)), data="blobs", steps=steps)

    config.__annotations__ = {"steps": int, "smoke": bool, **({"knob": kind} if annotated else {})}
    return ConfigFile(Path("own.py"), config, {"steps": 1, "smoke": False, "knob": default})


@pytest.mark.parametrize(
    "kind, value",
    [
        (Path, Path("a/b")),
        (Path | None, None),
        (tuple[int, int] | None, (1, 2)),
        (tuple[tuple[int, str], ...], ((1, "a"), (2, "b"))),
        (Color, Color.BLUE),
        (Color | None, Color.RED),
        (Literal["a", "b"], "b"),
        (int | tuple[int, ...], (3,)),
        (float, math.inf),
        (float, math.nan),
        (float, 1),
        (dict[str, float], {"a": 0.1}),
    ],
)
def test_knobs_come_back_from_their_record(kind, value):
    file = with_knob(kind, value)
    file.check_recorded()
    back = file.with_recorded(file.recorded())
    assert back.knobs["knob"] == value or math.isnan(value) and math.isnan(back.knobs["knob"])
    assert not back.changed


@pytest.mark.parametrize("kind, value", [(Any, (1, 2)), (str | Path, Path("s")), (Any, object())])
def test_knobs_that_would_not_come_back_are_refused(kind, value):
    with pytest.raises(UserError, match="knob knob = .* give it an annotation"):
        with_knob(kind, value).check_recorded()


def test_knobs_without_annotation_have_the_type_of_their_default():
    for value in (Path("x"), (1, 2), Color.RED, 3):
        file = with_knob(None, value, annotated=False)
        assert file.with_recorded(file.recorded()).knobs["knob"] == value


def test_a_run_with_typed_knobs_is_reopened(tmp_path):
    path = written(
        tmp_path,
        above="import enum\nfrom pathlib import Path\nclass Kind(enum.Enum):\n    A = 1\n    B = 2",
        knobs="kind: Kind = Kind.A, where: Path = Path('x'), pair: tuple[int, float] | None = None",
        inside="assert isinstance(kind, Kind) and isinstance(where, Path) and (pair is None or len(pair) == 2)",
    )
    options = ["--kind", "B", "--where", "some/where", "--pair", "3", "0.5"]
    train(str(path), [*options, "--devices=1", "--no-progress", "--workdir", str(tmp_path / "run")])
    run, warning = open_run(tmp_path / "run")
    knobs = run.config.knobs
    assert not warning and knobs["kind"].name == "B" and knobs["where"] == Path("some/where")
    assert knobs["pair"] == (3, 0.5) and int(run.state().step) == 1


def test_an_infinite_default_is_a_value_and_others_are_not(tmp_path):
    file = load(written(tmp_path, knobs="clip: float = float('inf'), rate: float = 0.1"))
    assert parse(file, [])[0].knobs["clip"] == math.inf
    with pytest.raises(UserError, match="--rate must be finite"):
        parse(file, ["--rate", "inf"])


def test_knobs_that_begin_with_no(tmp_path):
    file = load(written(tmp_path, knobs="no_prior: bool = False, noise: float = 0.1"))
    assert parse(file, ["--no-prior"])[0].knobs["no_prior"]
    assert not parse(file, ["--no-no-prior"])[0].knobs["no_prior"]
    with pytest.raises(UserError, match="no knob --prior"):
        parse(file, ["--prior"])


def test_long_knobs_have_a_folder_of_their_own(tmp_path):
    file = load(written(tmp_path, knobs="data: str = ''"))
    named = [default_workdir(file.with_knobs({"data": "é" * 300 + end})).name for end in "ab"]
    assert named[0] != named[1] and all(len(name.encode()) <= 160 for name in named)


def test_dataclasses_with_postponed_annotations(tmp_path):
    above = "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import ClassVar"
    own = "@dataclass(frozen=True)\nclass Own(GMM):\n    extra: int = 3\n    shared: ClassVar[int] = 1"
    assert isinstance(load(written(tmp_path, above=above, more=own)).build(), Experiment)


def test_modules_beside_a_config_are_found_wherever_it_is_called(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for i, folder in enumerate(folders):
        folder.mkdir()
        (folder / "beside.py").write_text(f"number = {i}")
        written(folder, above="import beside", knobs="number: int = beside.number", inside="import beside as again")
    for i in (0, 1, 0):
        assert load(folders[i] / "own.py").defaults["number"] == i


def test_a_config_with_an_error_leaves_no_module(tmp_path):
    import sys

    with pytest.raises(UserError, match="broken.py:2: ZeroDivisionError"):
        load(written(tmp_path, above="1 / 0", name="broken.py"))
    assert "gen_jax_config_broken" not in sys.modules


def test_a_run_is_reopened_with_its_own_config_from_any_folder(tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        written(Path(), knobs=f"{name}: int = 1", name="own.py")
        train("own.py", ["--devices=1", "--no-progress", "--workdir", "run"])
    run, warning = open_run(tmp_path / "here" / "run")
    assert not warning and "here" in run.config.knobs
    assert read_json(tmp_path / "here" / "run" / "run.json")["config"] == "own.py"


ARRAYS = """
import numpy as np
from gen_jax import Experiment, em
from gen_jax.data.dataset import Dataset
from gen_jax.models.mixture import GMM

def config(steps: int = 2, smoke: bool = False) -> Experiment:
    x = np.load("{path}")
    data = Dataset("pts", {{name: {{"x": x}} for name in ("train", "validation", "test")}})
    return Experiment(GMM(2), em(GMM(2)), data=data, steps=steps, report_every=1)
"""


def test_arrays_of_a_config_are_known_by_content(tmp_path):
    rng, options = np.random.default_rng(0), ["--devices=1", "--no-progress", "--workdir"]
    np.save(tmp_path / "pts.npy", rng.normal(size=(64, 2)).astype(np.float32))
    (tmp_path / "own.py").write_text(ARRAYS.format(path=tmp_path / "pts.npy"))
    train(str(tmp_path / "own.py"), [*options, str(tmp_path / "a")])
    np.save(tmp_path / "pts.npy", rng.normal(size=(64, 2)).astype(np.float32))
    with pytest.raises(UserError, match="the data pts has changed since"):
        train(str(tmp_path / "own.py"), [*options, str(tmp_path / "a"), "--steps=4"])
    (tmp_path / "other.py").write_text(ARRAYS.format(path=tmp_path / "other.npy"))
    np.save(tmp_path / "other.npy", rng.normal(size=(64, 2)).astype(np.float32))
    train(str(tmp_path / "other.py"), [*options, str(tmp_path / "b")])
    with pytest.raises(UserError, match="data of one name, and different content"):
        compared([tmp_path / "a", tmp_path / "b"], "", "test", None, 100, 0, None, {})
