"""Variants that researchers write, each in one file: they keep the laws, train from the command line, and come back."""

import contextlib
import io
from pathlib import Path

import jax
import pytest
import test_contract as contract
from laws import Case

from gen_jax.cli.main import COMMANDS
from gen_jax.cli.train import train
from gen_jax.configs import load
from gen_jax.files import read_json
from gen_jax.models.bijections import certify

VARIANTS = sorted(path for path in (Path(__file__).parent / "variants").glob("*.py"))
SINGLE = [path for path in VARIANTS if not path.stem.startswith("population")]


@pytest.fixture(scope="module", params=SINGLE, ids=lambda path: path.stem)
def case(request):
    return Case(request.param)


def test_a_step_keeps_the_structure(case):
    contract.check_structure(case)


@pytest.mark.representatives("alternating", "mixture_by_descent", "sam_lookahead")
def test_chunks_are_steps(case, same):
    contract.test_law_07_chunk_equals_step_by_step(case, same)


def test_likelihoods_agree_with_the_loss(case):
    if case.climbs and not case.by_em:
        pytest.skip("reports no loss")
    contract.test_law_11_likelihoods_are_per_example_in_nats_and_agree_with_the_loss(case)


def test_training_improves(case):
    contract.test_law_12_training_improves(case)


@pytest.mark.slow
@pytest.mark.parametrize(
    "law", [name for name in vars(contract) if name.startswith("test_law") and "16" not in name and "17" not in name]
)
def test_all_laws(case, law, request):
    function = vars(contract)[law]
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    function(*[case if name == "case" else request.getfixturevalue(name) for name in names])


def quietly(call, *arguments):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        call(*arguments)
    return said.getvalue()


@pytest.mark.representatives("population*")
@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)
def test_the_commands_take_it(path, tmp_path):
    commands = {command.__name__: command for command in COMMANDS}
    options = ["--smoke", "--devices=1", "--no-progress", "--workdir", str(tmp_path / "run")]
    quietly(train, str(path), options)
    assert "had already finished" in quietly(train, str(path), options)
    found = read_json(tmp_path / "run" / "run.json")["summary"]
    assert found["step"] == 20 and found["evaluation"] and not found.get("failed")
    assert list((tmp_path / "run" / "plots").glob("*.png"))
    said = quietly(commands["evaluate"], tmp_path / "run")
    assert "test split" in said
    quietly(lambda: commands["sample"](tmp_path / "run", out=tmp_path / "drawn.npz", n=3))
    quietly(commands["plot"], tmp_path / "run")
    if path.stem.startswith("population"):
        spread = [e for e in found["evaluation"].values() if e["seeds"] == 3 and e["spread"] > 0]
        assert spread and "3 seeds" in said
        quietly(lambda: commands["sample"](tmp_path / "run", out=tmp_path / "drawn.npz", n=3, member=2))


def test_a_layer_of_ones_own_is_certified():
    [path] = [path for path in VARIANTS if path.stem == "householder_flow"]
    householder = load(path).config.__globals__["Householder"]
    assert certify(householder(), jax.random.normal(jax.random.key(0), (4, 3))).params == 3
