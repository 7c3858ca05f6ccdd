"""Trials, the store, simulated raters and their analysis; a server that is killed loses nothing."""

import csv
import http.client
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest
from studies import Client, edited, free_port, make_study

from gen_jax.applications.study.analysis import analyzed, counting
from gen_jax.applications.study.creation import padded
from gen_jax.applications.study.export import DICTIONARY, export_answers
from gen_jax.applications.study.plan import draw_trials
from gen_jax.applications.study.protocol import KINDS, Source, Stimulus, wording
from gen_jax.applications.study.report import write_report
from gen_jax.applications.study.simulation import simulate
from gen_jax.applications.study.status import report
from gen_jax.applications.study.store import Conflict, Refused, open_study
from gen_jax.applications.translation import encoded
from gen_jax.errors import UserError


@pytest.fixture
def store(tmp_path):
    return open_study(make_study(tmp_path / "s"))


def trials_of(store, raters=8):
    shown, found = Counter(), []
    for number in range(raters):
        trials = draw_trials(store.protocol, store.stimuli, shown, np.random.default_rng(number))
        shown.update(id for one in trials for id in one.stimuli)
        found.append(trials)
    return found, shown


@pytest.mark.parametrize("kind", KINDS)
def test_trials_are_balanced_and_repeat_nothing(tmp_path, kind):
    store = open_study(make_study(tmp_path / "s", kind, catch=3))
    found, shown = trials_of(store)
    source = lambda id: store.stimuli[id].source
    for trials in found:
        roles = [one.role for one in trials]
        assert roles[:2] == ["practice"] * 2 and roles.count("main") == 12 and roles.count("catch") == 3
        assert roles[2] == "main"
        main = [one for one in trials if one.role == "main"]
        ids = [id for one in main for id in one.stimuli]
        assert len(set(ids)) == len(ids) and all(store.stimuli[id].role == "main" for id in ids)
        counts = Counter(source(id) for id in ids)
        assert counts == ({0: 6, 1: 3, 2: 3} if kind == "turing" else {i: len(ids) // 3 for i in range(3)})
        if kind == "match":
            assert Counter(one.expected for one in main) == {0: 6, 1: 6}
            for one in main:
                same = store.stimuli[one.given].description == store.stimuli[one.stimuli[0]].description
                assert same == (one.expected == 0) and source(one.given) == source(one.stimuli[0])
    orders = {tuple(one.stimuli for one in trials) for trials in found}
    assert len(orders) == len(found)
    main = [shown[one.id] for one in store.stimuli.values() if one.role == "main"]
    assert max(main) - min(main) <= (2 if kind == "turing" else 1)  # real ones are shown more often
    if kind == "pairs":
        left = [source(one.stimuli[0]) for trials in found for one in trials if one.role == "main"]
        assert 10 < left.count(0) < 54
        right = [one for trials in found for one in trials if one.expected is not None]
        assert all(source(one.stimuli[one.expected]) == 0 for one in right)


def test_texts_are_shown_with_their_prompts(tmp_path):
    for kind in ("turing", "pairs"):
        store = open_study(make_study(tmp_path / kind, kind, medium="text"))
        for one in trials_of(store, 1)[0][0]:
            if one.role == "main":
                assert {store.stimuli[id].given for id in one.stimuli} == {store.stimuli[one.given].given}


def test_files_of_stimuli_tell_nothing(store):
    paths = sorted((store.folder / "stimuli").iterdir())
    assert len({path.stat().st_size for path in paths}) == 1
    assert len({path.name.partition(".")[0] for path in paths} & set(store.stimuli)) == len(paths)
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    from PIL import Image

    plain = encoded(image, ".png")
    longer = padded(plain, len(plain) + 40)
    (store.folder / "x.png").write_bytes(longer)
    assert len(longer) == len(plain) + 40
    np.testing.assert_array_equal(np.asarray(Image.open(store.folder / "x.png")), image)


def test_answers_are_taken_in_order_and_once(store):
    rater, session = store.admit()
    assert store.rater(session) == rater
    with pytest.raises(Refused):
        store.rater(session + "x")
    now = store.current(rater)
    store.answer(rater, now.id, 0, 500.0, 1.0, False)
    for _ in range(2):
        with pytest.raises(Conflict):
            store.answer(rater, now.id, 1, 500.0, 1.0, False)
    other, _ = store.admit()
    with pytest.raises(Refused):
        store.answer(other, store.current(rater).id, 0, None, None, False)
    rows = store.connection.execute("SELECT id FROM trial WHERE rater = ? ORDER BY position", (rater,)).fetchall()
    with pytest.raises(Conflict):
        store.answer(rater, rows[5][0], 0, None, None, False)  # a later one
    assert store.count("answer") == 1


def test_a_damaged_database_is_refused_with_its_last_backup(store):
    simulate(store, 2, (1.0, 1.0))
    store.back_up()
    store.close()
    path = store.folder / "study.db"
    content = bytearray(path.read_bytes())
    content[4096:12288] = os.urandom(8192)
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged.*backups/study-"):
        open_study(store.folder)
    path.write_bytes(store.backups()[-1].read_bytes())
    assert open_study(store.folder).count("answer") == 32


def test_three_backups_are_kept(store):
    for _ in range(5):
        store.back_up()
    assert len(store.backups()) == 3 and not list((store.folder / "backups").glob("*.draft*"))


def test_a_deleted_rater_is_gone_everywhere(store):
    simulate(store, 3, (1.0, 1.0))
    store.back_up()
    rater = store.raters()[1]["rater"]
    assert store.delete(rater) == 16
    assert store.count("answer") == 32 and store.count("trial") == 32
    everywhere = [store.folder / "study.db", store.folder / "study.db-wal", *store.backups()]
    assert all(rater.encode() not in path.read_bytes() for path in everywhere if path.exists())
    with pytest.raises(UserError, match="no rater"):
        store.delete(rater)


def test_raters_are_excluded_by_the_rule(store):
    protocol = store.protocol
    row = lambda **more: {
        "rater": "a",
        "role": "main",
        "rt_ms": 900.0,
        "hidden": 0,
        "choice": 0,
        "expected": 0,
        "at": 1.0,
        **more,
    }
    main, catch = [row()] * 12, [row(role="catch", expected=1, choice=1)] * 2
    assert counting(protocol, main + catch) == (["a"], {})
    why = lambda rows: counting(protocol, rows)[1].get("a", "")
    assert "catch" in why(main + [catch[0], {**catch[0], "choice": 0}])
    assert "100 ms" in why([row(rt_ms=100.0)] * 12)
    assert not why([row(rt_ms=100.0, hidden=1)] * 12 + catch)
    assert "answered 5" in why(main[:5])
    later = [row(rater="b", at=5.0) for _ in range(6)]
    assert counting(protocol, later + [{**one, "at": 9.0} for one in main])[0] == ["b", "a"]


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A study of each kind, answered by raters of known sensitivity."""
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp("answered") / kind
        found[kind] = open_study(make_study(folder, kind, n=60, trials=60, practice=0))
        simulate(found[kind], 40, (0.6, 1.8), seed=1)
    return found


def test_the_sensitivity_of_simulated_raters_is_recovered(answered):
    found = analyzed(answered["turing"], simulated=True)
    own = found.intervals["sensitivity d'"]
    spread = np.sqrt(1 + 0.2**2)  # raters' criteria differ: d' of pooled answers is a little smaller
    for name, ability in (("model0", 0.6), ("model1", 1.8)):
        assert own[name].low <= ability / spread <= own[name].high
    rates = found.estimates["model0"]["human_deception"], found.estimates["model1"]["human_deception"]
    assert rates[0].value > rates[1].value and rates[0].group == "human evaluation"
    assert found.raters == 40 and "40 raters, 2400 answers" in rates[0].how
    scores = [score for *_, score in found.stimuli]
    assert scores[0] > 0.8 > 0.2 > scores[-1]


def test_the_ranking_of_simulated_raters_is_recovered(answered):
    found = analyzed(answered["pairs"], simulated=True)
    strengths = found.intervals["strength, log odds"]
    assert list(strengths) == ["real", "model0", "model1"]
    for name, distance in (("real", 0.0), ("model0", 0.6), ("model1", 1.8)):
        assert strengths[name].low <= 0.8 - distance <= strengths[name].high
    titles = [table.title for table in found.tables]
    assert "told from real ones" in titles


def test_ratings_and_matches_of_simulated_raters(answered):
    ratings = [one.value for one in next(iter(analyzed(answered["rating"], True).intervals.values())).values()]
    assert ratings == sorted(ratings, reverse=True) and ratings[0] > 4 > 3 > ratings[2]
    own = analyzed(answered["match"], True).intervals["sensitivity d'"]
    for name, sensitivity in (("real", 3.0), ("model0", 2.4), ("model1", 1.2)):
        assert abs(own[name].value - sensitivity) < 4 * own[name].error


@pytest.mark.parametrize("kind", KINDS)
def test_reports_of_every_kind(answered, kind, tmp_path):
    found = analyzed(answered[kind], simulated=True)
    written = write_report(answered[kind].folder, found, tmp_path / "out")
    page = written[0].read_text()
    assert "<script" not in page and "http" not in page and "model1" in page and "data:image/png" in page
    record = json.loads(written[1].read_text())
    assert record["raters"] > 36 and set(record["estimates"]) == {"real", "model0", "model1"}
    assert all(path.stat().st_size > 500 for path in written[2:])


def test_simulated_raters_never_count_beside_people(store):
    simulate(store, 3, (1.0, 1.0))
    with pytest.raises(UserError, match="--simulated"):
        analyzed(store)
    rater, _ = store.admit()
    while (now := store.current(rater)) is not None:
        store.answer(rater, now.id, now.expected, 900.0, 1.0, False)
    with pytest.raises(UserError, match="1 rater counts.* two are needed"):
        analyzed(store)
    lines = report(store)
    assert any("1 raters, of whom 1 count" in str(line) for line in lines)
    assert analyzed(store, simulated=True).raters == 3


def test_exports_are_described_and_hold_no_formulas(tmp_path):
    study = make_study(tmp_path / "s", own={"choices": ["=1+1", "Generated"]})
    store = open_study(study)
    simulate(store, 2, (1.0, 1.0))
    for ending in (".csv", ".json"):
        n, dictionary = export_answers(store, tmp_path / f"a{ending}")
        assert n == 32 and json.loads(dictionary.read_text()) == DICTIONARY
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    records = json.loads((tmp_path / "a.json").read_text())
    assert len(rows) == len(records) == 32 and list(rows[0]) == list(DICTIONARY) == list(records[0])
    assert {row["choice_text"] for row in rows} == {"'=1+1", "Generated"}
    assert {row["source"] for row in rows} == {"real", "model0", "model1"}


def test_wording_of_ones_own():
    texts = wording(
        "rating", "text", 30, {"language": "de", "choices": ["schlecht", "mittel", "gut"], "title": "{things}"}
    )
    assert texts["choices"][2] == "gut" and texts["title"] == "texts" and "30 texts" in texts["consent"]
    for own, said in (
        ({"titel": "x"}, "no text 'titel'"),
        ({"choices": ["a"]}, "choices, got 1"),
        ({"choices": "ab"}, "list of texts"),
        ({"title": 3}, "must be a string"),
    ):
        with pytest.raises(UserError, match=said):
            wording("turing", "image", 30, own)


def test_studies_that_cannot_be_opened_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not a study"):
        open_study(tmp_path)
    study = make_study(tmp_path / "s")
    original = (study / "protocol.json").read_text()
    for changes, said in (
        ({"version": 7}, "version 7"),
        ({"kind": "other"}, "kind"),
        ({"more": 1}, "more"),
        ({"stimuli": "0" * 64}, "stimuli.json is not the one"),
        ({"wording": {"choices": ["a"]}}, "lacks"),
        ({"wording": None}, "an object"),
        ({"medium": "video"}, "medium"),
        ({"trials": "ten"}, "trials must be a number"),
        ({"trials": 400}, "at most 40"),
        ({"least_passed": "high"}, "least_passed"),
        ({"catch": 13}, "catch must be"),
        ({"sources": []}, "sources"),
        ({"sources": [{"name": "a", "color": 1}]}, "wrong sources"),
    ):
        edited(study, **changes)
        with pytest.raises(UserError, match=said):
            open_study(study)
        (study / "protocol.json").write_text(original)
    (study / "protocol.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        open_study(study)


def begun(study, port):
    """A server in a process of its own."""
    command = [sys.executable, "-m", "gen_jax", "study", "serve", str(study), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while True:
        try:
            if Client(port).ask("/api/state")[0] == 200:
                return process
        except OSError:
            assert process.poll() is None
            time.sleep(0.02)


class Stubborn(threading.Thread):
    """A rater who sends until it has a reply, as the page does, and remembers what was confirmed."""

    def __init__(self, port, client):
        super().__init__()
        self.port, self.client, self.confirmed, self.ended = port, client, {}, threading.Event()

    def run(self):
        while not self.ended.is_set():
            try:
                state = self.client.state()
                if state["page"] != "trial":
                    return
                id, choice = state["trial"]["id"], len(self.confirmed) % 2
                status = self.client.answer(id, choice)[0]
                if status in (200, 409):
                    self.confirmed[id] = choice
            except (OSError, ValueError, http.client.HTTPException):
                time.sleep(0.01)


@pytest.mark.representatives("3")
@pytest.mark.parametrize("kills", [3, 50])
def test_a_killed_server_loses_no_answer(tmp_path, kills):
    """20 raters answer while the server is killed at random instants: each confirmed answer is there, once."""
    study, port, rng = (
        make_study(tmp_path / "s", n=400, trials=400, practice=0, catch=0),
        free_port(),
        np.random.default_rng(0),
    )
    process = begun(study, port)
    clients = [Client(port) for _ in range(20)]
    assert all(client.join()[0] == 200 for client in clients)
    raters = [Stubborn(port, client) for client in clients]
    [one.start() for one in raters]
    for _ in range(kills):
        time.sleep(rng.uniform(0.1, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = begun(study, port)
    time.sleep(0.2)
    [one.ended.set() for one in raters]
    [one.join() for one in raters]
    process.terminate()
    process.wait()
    with sqlite3.connect(study / "study.db") as connection:
        stored = dict(connection.execute("SELECT trial, choice FROM answer"))
    confirmed = {id: choice for one in raters for id, choice in one.confirmed.items()}
    assert len(confirmed) == sum(len(one.confirmed) for one in raters) > 40
    assert all(stored.get(id) == choice for id, choice in confirmed.items())
    assert len(stored) - len(confirmed) <= 20 * (kills + 1)  # stored, but killed before the reply


def test_sources_and_stimuli_have_plain_records():
    assert Source("a", True).run == "" and Stimulus("x", 0, 1, given="7").description == "7"


def answered_by(store, choose, raters):
    for number in range(raters):
        rng = np.random.default_rng(number)
        rater, _ = store.admit()
        while (now := store.current(rater)) is not None:
            choice = now.expected if now.role == "catch" else choose(now, rng)
            store.answer(rater, now.id, choice, 900.0, 1.0, False)


def test_saying_generated_often_is_no_evidence(tmp_path):
    """Raters who say "generated" in two of three trials, whatever they see, cannot tell the two apart."""
    store = open_study(make_study(tmp_path / "s", n=60, trials=40, practice=0))
    answered_by(store, lambda now, rng: int(rng.random() < 0.67), 30)
    found = analyzed(store)
    assert "not decided" in " ".join(found.notes) and "not decided" in str(report(store)[-1])
    assert all(one.low < 0 < one.high for one in found.intervals["sensitivity d'"].values())
    simulate(store, 30, (1.5, 1.5))
    assert "can be told" in " ".join(analyzed(store, simulated=True).notes)


def test_raters_who_agree_completely_are_not_certain(tmp_path):
    store = open_study(make_study(tmp_path / "s", trials=4, catch=0, practice=0))
    answered_by(store, lambda now, rng: 1, 3)
    found = analyzed(store)
    assert all(np.isnan(one.error) for one in found.intervals["share judged real"].values())
    assert "unknown" in str(found.tables[0].rows)


def test_ties_alone_and_few_answers_are_analyzed(tmp_path):
    store = open_study(make_study(tmp_path / "pairs", "pairs", practice=0))
    answered_by(store, lambda now, rng: 2, 3)
    found = analyzed(store)
    assert all(abs(one.value) < 1e-6 for one in found.intervals["strength, log odds"].values())
    store = open_study(make_study(tmp_path / "match", "match", trials=2, catch=0, practice=0))
    answered_by(store, lambda now, rng: now.expected, 2)
    assert "unknown" in " ".join(analyzed(store).notes) or analyzed(store).raters == 2
    write_report(store.folder, analyzed(store), tmp_path / "out")


def test_pairs_of_many_models_show_nothing_twice(tmp_path):
    store = open_study(make_study(tmp_path / "s", "pairs", models=3, n=5, trials=8, catch=6, practice=6))
    for seed in range(40):
        trials = draw_trials(store.protocol, store.stimuli, {}, np.random.default_rng(seed))
        ids = [id for one in trials for id in one.stimuli]
        assert len(set(ids)) == len(ids)
    with pytest.raises(UserError, match="at most 8"):
        open_study(make_study(tmp_path / "t", "pairs", models=3, n=5, trials=9))


def test_a_locked_database_is_not_called_damaged(store):
    store.close()
    with sqlite3.connect(store.folder / "study.db", isolation_level=None) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match="cannot be opened") as error:
            open_study(store.folder)
        assert "damaged" not in str(error.value)


def test_a_rater_is_deleted_by_the_code_too(store):
    simulate(store, 2, (1.0, 1.0))
    assert store.delete(store.raters()[0]["code"]) == 16 and len(store.raters()) == 1
