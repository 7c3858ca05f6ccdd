"""`gen_jax study`: studies of tiny runs, from creation to the comparison, and what it refuses."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import trained

from gen_jax.applications.study.store import open_study
from gen_jax.cli.compare_runs import human_columns
from gen_jax.cli.study import analyze, create, delete_rater, export, invite, serve, simulate, status
from gen_jax.errors import UserError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: trained(name, folder) for name in ("cvae_digits", "dcgan_digits", "realnvp_moons")}


@pytest.fixture(scope="module")
def study(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "turing"
    create((runs["cvae_digits"], runs["dcgan_digits"]), folder, n=30, trials=20)
    return folder


def test_stimuli_are_real_examples_and_samples(study, runs, capsys):
    store = open_study(study)
    counts = {}
    for one in store.stimuli.values():
        counts[one.source, one.role] = counts.get((one.source, one.role), 0) + 1
        assert Image.open(study / "stimuli" / one.file).size == (8, 8)
    assert counts == {(i, role): n for i in range(3) for role, n in (("main", 30), ("practice", 12))} | {
        (0, "catch"): 12
    }
    from gen_jax.data import load

    test = load("digits")["test"]["x"]
    one = next(one for one in store.stimuli.values() if one.source == 0 and one.role == "main")
    shown = np.asarray(Image.open(study / "stimuli" / one.file))
    np.testing.assert_array_equal(shown, np.floor(test[one.index, ..., 0] / 16 * 255 + 0.5))
    assert [source.name for source in store.protocol.sources] == ["real (test)", "cvae_digits", "dcgan_digits"]
    assert store.protocol.sources[1].step == 2 and store.protocol.sources[1].family == "VAE"


def test_a_study_ends_in_a_report_and_in_the_comparison(study, runs, tmp_path, capsys):
    store, raters = open_study(study), []
    for _ in range(3):
        rater, _ = store.admit()
        raters.append(rater)
        while (now := store.current(rater)) is not None:
            choice = now.expected if (now.role == "catch" or now.number % 4) else 0
            store.answer(rater, now.id, choice, 900.0, 1.0, False)
    analyze(study, tmp_path / "analysis")
    printed = capsys.readouterr().out
    assert "judged real" in printed and "Krippendorff" in printed
    record = json.loads((tmp_path / "analysis" / "analysis.json").read_text())
    assert record["raters"] == 3 and record["answers"] == 60
    columns = human_columns([study])
    assert columns[runs["cvae_digits"].resolve()][1]["human_deception"].group == "human evaluation"
    with pytest.raises(UserError, match="another study"):
        human_columns([study, study])
    status(study)
    assert "e-value" in capsys.readouterr().out
    export(study, tmp_path / "a.csv")
    assert "84 answers" in capsys.readouterr().out
    delete_rater(study, raters[1])
    assert "28 answers are deleted" in capsys.readouterr().out


def test_a_match_shows_labels(runs, tmp_path, capsys):
    create((runs["cvae_digits"],), tmp_path / "s", kind="match", n=20, trials=10)
    store = open_study(tmp_path / "s")
    assert {one.given for one in store.stimuli.values()} <= set("0123456789")
    simulate(tmp_path / "s", 2, (1.0,))
    analyze(tmp_path / "s", simulated=True)
    assert "share right" in capsys.readouterr().out
    with pytest.raises(UserError, match="no labels"):
        create((runs["dcgan_digits"],), tmp_path / "t", kind="match", n=20, trials=10)


@pytest.mark.slow
def test_translations_are_shown_with_their_inputs_and_texts_with_their_prompts(tmp_path):
    pix = trained("pix2pix_outlines", tmp_path)
    create((pix,), tmp_path / "pix", kind="pairs", with_real=True, n=20, trials=10)
    store = open_study(tmp_path / "pix")
    assert all((tmp_path / "pix" / "stimuli" / one.given_file).is_file() for one in store.stimuli.values())
    texts = trained("gpt_tales", tmp_path)
    create((texts,), tmp_path / "texts", n=20, trials=20, length=20)
    store = open_study(tmp_path / "texts")
    by_source = [{one.given for one in store.stimuli.values() if one.source == i} for i in (0, 1)]
    assert by_source[0] == by_source[1] and all(one.text for one in store.stimuli.values())


def test_invitations_are_links(study, capsys):
    invite(study, 2, "http://lab.example:8000/")
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 3 and all("\thttp://lab.example:8000/#invitation=" in line for line in lines[:2])


def test_links_are_whole_addresses(study):
    with pytest.raises(UserError, match="http"):
        invite(study, 1, "lab.example")


def test_a_port_in_use_is_refused(study):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="another --port"):
            serve(study, port=taken.getsockname()[1])
    with pytest.raises(UserError, match="--port"):
        serve(study, port=0)


def test_wording_comes_from_a_file(runs, tmp_path):
    path = tmp_path / "de.json"
    path.write_text(json.dumps({"language": "de", "question": "Echt oder erzeugt?", "choices": ["Echt", "Erzeugt"]}))
    create((runs["dcgan_digits"],), tmp_path / "s", n=20, trials=10, wording=path)
    texts = open_study(tmp_path / "s").protocol.wording
    assert texts["choices"] == ["Echt", "Erzeugt"] and texts["next"] == "Next"
    path.write_text("[]")
    with pytest.raises(UserError, match="an object"):
        create((runs["dcgan_digits"],), tmp_path / "t", wording=path)


WRONG = [
    ({}, {"workdirs": ()}, "which runs"),
    ({}, {"kind": "pairs"}, "two models"),
    ({"n": 20}, {"trials": 41}, "at most 40"),
    ({"n": 20}, {"kind": "pairs", "with_real": True, "trials": 20}, "at most 19"),
    ({"n": 400, "trials": 40}, {}, "412 examples are needed"),
    ({}, {"n": 0}, "--n must be"),
    ({}, {"catch": 13}, "catch must be"),
    ({}, {"trials": 2, "catch": 3}, "at most as many"),
    ({}, {"split": "nowhere"}, "nowhere"),
    ({}, {"step": "best of all"}, "--step"),
    ({}, {"psi": 0.5}, "psi"),
    ({}, {"seed": -1}, "--seed"),
    ({}, {"temperature": 0.5}, "for texts"),
    ({}, {"mean": True}, "no latent vectors"),
    ({}, {"wording": Path("nowhere.json")}, "no such file"),
]


@pytest.mark.parametrize("given, wrong, said", WRONG, ids=[said for *_, said in WRONG])
def test_wrong_designs_are_refused_before_anything_is_written(runs, tmp_path, given, wrong, said):
    with pytest.raises(UserError, match=said):
        create(**{"workdirs": (runs["dcgan_digits"],), "out": tmp_path / "s", **given, **wrong})
    assert not list(tmp_path.iterdir())


def test_runs_that_cannot_be_shown_or_compared_are_refused(runs, tmp_path, study):
    with pytest.raises(UserError, match="images and texts"):
        create((runs["realnvp_moons"],), tmp_path / "s")
    with pytest.raises(UserError, match="different data"):
        create((runs["dcgan_digits"], runs["realnvp_moons"]), tmp_path / "s")
    with pytest.raises(UserError, match="more than once"):
        create((runs["dcgan_digits"], runs["dcgan_digits"]), tmp_path / "s")
    with pytest.raises(UserError, match="is there already"):
        create((runs["dcgan_digits"],), study)
    with pytest.raises(UserError, match="is not a study"):
        analyze(tmp_path)
    with pytest.raises(UserError, match="--ability"):
        simulate(study, 2, (1.0, 2.0, 3.0))
    with pytest.raises(UserError, match="from 0 to 10"):
        simulate(study, 2, (float("nan"),))
    with pytest.raises(UserError, match="--lapse"):
        simulate(study, 2, lapse=2.0)
    with pytest.raises(UserError, match=".csv or .json"):
        export(study, tmp_path / "a.txt")
