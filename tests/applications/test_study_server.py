"""The server of studies: what a rater may do, what it tells, and what it refuses."""

import json
import socket
import sqlite3
import threading
import time

import pytest
from studies import Client, edited, make_study, serving

from gen_jax.applications.study.store import Store, open_study
from gen_jax.errors import UserError

TRUTH = ("real", "model", "expected", "source", "catch", "sha256", "seed", "main")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study") / "s", practice=2)


@pytest.fixture(scope="module")
def port(study):
    with serving(study) as found:
        yield found


@pytest.fixture
def client(port, monkeypatch):
    monkeypatch.setattr("gen_jax.applications.study.server.ADMISSIONS", 10_000)
    return Client(port)


def test_a_rater_answers_every_trial_once_and_gets_a_code(client, study):
    assert client.state()["page"] == "consent"
    assert client.join()[0] == 200
    seen, feedback = [], []
    while (state := client.state())["page"] == "trial":
        trial = state["trial"]
        status, headers, picture = client.ask(trial["items"][0]["picture"])
        assert status == 200 and headers["content-type"] == "image/png"
        seen.append((trial["practice"], trial["number"], trial["total"], len(picture)))
        reply = json.loads(client.answer(trial["id"], 1)[2])
        feedback.append("feedback" in reply)
    assert [one[:3] for one in seen] == [(True, i, 2) for i in (1, 2)] + [(False, i, 14) for i in range(1, 15)]
    assert feedback == [True] * 2 + [False] * 14
    assert len({size for *_, size in seen}) == 1  # the length of a file tells nothing
    assert len(state["code"]) == 8
    [rater] = [one for one in open_study(study).raters() if one["answers"] == 16]
    assert rater["finished"] and rater["screen"] == "800x600@1"


def test_the_page_is_told_nothing_about_the_answer(client, study):
    client.join()
    stimuli = {one.id for one in open_study(study).stimuli.values()}
    for _ in range(5):
        text = json.dumps(client.state()["trial"])
        assert not any(word in text for word in TRUTH) and not any(id in text for id in stimuli)
        client.answer(client.state()["trial"]["id"])


def test_an_answer_is_taken_once(client):
    client.join()
    first = client.state()["trial"]["id"]
    assert client.answer(first)[0] == 200
    assert client.answer(first)[0] == 409
    assert client.answer(first, 1)[0] == 409
    assert client.state()["trial"]["number"] == 2


def test_two_tabs_at_once_store_one_answer(client, study):
    client.join()
    trial, replies = client.state()["trial"]["id"], []
    threads = [threading.Thread(target=lambda i=i: replies.append(client.answer(trial, i % 2)[0])) for i in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(replies) == [200] + [409] * 7


def test_a_restarted_server_goes_on_where_raters_were(tmp_path):
    study = make_study(tmp_path / "s")
    with serving(study) as port:
        client = Client(port)
        client.join()
        client.answer(client.state()["trial"]["id"])
        now = client.state()
    with serving(study) as client.port:
        assert client.state() == now
        assert client.finish()["page"] == "done"


def test_pictures_of_later_trials_and_of_others_are_refused(client, study, port):
    client.join()
    store = open_study(study)
    rater = store.rater(client.cookie.split("=")[1])
    rows = store.connection.execute(
        "SELECT token, position FROM shown JOIN trial ON trial.id = trial WHERE rater = ? ORDER BY position", (rater,)
    ).fetchall()
    statuses = [client.ask(f"/picture/{token}")[0] for token, _ in rows]
    assert statuses == [200] + [403] * (len(rows) - 1)
    other = Client(port)
    other.join()
    assert other.ask(f"/picture/{rows[0][0]}")[0] == 403
    assert Client(port).ask(f"/picture/{rows[0][0]}")[0] == 403


PATHS = [
    "/../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/..%2f..%2fprotocol.json",
    "//etc/passwd",
    "/picture/..\\x",
    "/picture/%00",
    "/picture/..%2f..%2fstudy.db",
    "/picture/1000000000",
    "/picture/-1",
    "/picture/1%20OR%201",
    "/picture/%F0%9F%92%A3",
    "/stimuli/",
    "/study.db",
    "/protocol.json",
    "/api/",
    "/api/answer",
    "/study.js/../study.db",
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_to_a_file(client, path):
    client.join()
    status, _, body = client.ask(path)
    assert 400 <= status < 500 and b"root:" not in body and b"sources" not in body and b"SQLite" not in body


def refused(client, **request):
    """The status of a request that must change nothing."""
    before = client.state()
    status = client.ask("/api/answer", **request)[0]
    assert client.state() == before
    return status


def test_malformed_answers_are_refused(client):
    client.join()
    trial = client.state()["trial"]["id"]
    good = {"trial": trial, "choice": 0, "rt": 1.0, "onset": 1.0, "hidden": False}
    wrong = [
        {"choice": {"$gt": 1}},
        {"choice": 2},
        {"choice": -1},
        {"choice": 10**30},
        {"choice": True},
        {"choice": "0"},
        {"choice": 0.5},
        {"trial": 5},
        {"trial": [trial]},
        {"hidden": 1},
    ]
    for change in wrong:
        assert refused(client, content={**good, **change}) == 400, change
    for unknown in ("", "x", trial + "'", "1 OR 1=1", trial.upper() + "\x00"):
        assert refused(client, content={**good, "trial": unknown}) == 403
    bodies = [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b"[" * 3000,
        b'{"trial": NaN}',
        b'{"choice": ' + b"9" * 4000 + b"}",
    ]
    for body in bodies:
        assert 400 <= refused(client, body=body) < 500, body[:10]
    for odd in ('"\\ud800"', '"\\udfff\\ud800"'):
        assert refused(client, body=f'{{"trial": {odd}, "choice": 0}}'.encode()) == 403


def test_no_answer_is_refused_for_its_time(client, study):
    client.join()
    for odd in (-0.4, 9e7, "1", float("inf"), None, 10**400):
        trial = client.state()["trial"]["id"]
        assert client.answer(trial, rt=odd, onset=odd)[0] == 200
        rows = [row for row in open_study(study).answers() if row["trial"] == trial]
        assert rows[0]["rt_ms"] is None and rows[0]["onset_ms"] is None


def test_a_trial_that_was_shown_before_is_marked(client, study):
    client.join()
    trial = client.state()["trial"]
    assert not trial["seen"]
    for _ in range(2):
        assert client.ask("/api/shown", {"trial": trial["id"]})[0] == 200
    assert client.state()["trial"]["seen"]
    client.answer(trial["id"])
    assert client.ask("/api/shown", {"trial": trial["id"]})[0] == 409
    [row] = [row for row in open_study(study).answers() if row["trial"] == trial["id"]]
    assert row["hidden"] == 1


def test_studies_do_not_share_a_cookie_and_proxies_may_encrypt(tmp_path):
    one, other = make_study(tmp_path / "a"), make_study(tmp_path / "b", n=21)
    with serving(one, loopback=False, hosts=("study.example",)) as port, serving(other) as second:
        client = Client(port)
        client.join()
        elsewhere = Client(second)
        elsewhere.join()
        assert client.cookie.split("=")[0] != elsewhere.cookie.split("=")[0]
        headers = {"Host": "study.example", "Origin": "https://study.example"}
        status, found, _ = Client(port).ask("/api/join", {"agreed": True}, headers=headers)
        assert status == 200 and "secure" in found["set-cookie"].lower()
        forged = {"Host": f"127.0.0.1:{port}", "Origin": f"https://127.0.0.1:{port}"}
        assert Client(port).ask("/api/join", {"agreed": True}, headers=forged)[0] == 403
        assert Client(port).ask("/api/join", {"agreed": True}, headers={"Host": "other.example"})[0] == 421


def test_connections_without_a_request_are_closed(tmp_path, monkeypatch):
    monkeypatch.setattr("gen_jax.applications.study.server.SLOWEST", 1.0)
    with serving(make_study(tmp_path / "s")) as port, socket.create_connection(("127.0.0.1", port), timeout=5) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: 127")
        assert slow.recv(100) == b""
        kept = Client(port)
        kept.join()
        assert kept.finish()["page"] == "done"


def test_guessed_invitations_do_not_keep_others_out(tmp_path, monkeypatch):
    monkeypatch.setattr("gen_jax.applications.study.server.ADMISSIONS", 2)
    with serving(make_study(tmp_path / "s")) as port:
        assert {Client(port).join(invitation="guess")[0] for _ in range(5)} == {403}
        assert Client(port).join()[0] == 200


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": None}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
        ({"Host": "192.168.0.7"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "a:b:c"}, 421),
        ({"Cookie": None}, 403),
        ({"Cookie": "study=forged"}, 403),
        ({"Cookie": "study="}, 403),
        ({"Content-Length": "5000"}, 413),
        ({"Content-Length": "99999999999"}, 413),
    ],
)
def test_forged_requests_are_refused(client, headers, status):
    client.join()
    body = json.dumps({"trial": client.state()["trial"]["id"], "choice": 0}).encode()
    assert refused(client, body=body, headers=headers) == status


def raw(port, content):
    """What the server replies to these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        found = b""
        try:
            connection.sendall(content)
            while b"\r\n\r\n" not in found and (part := connection.recv(65536)):
                found += part
        except (ConnectionResetError, BrokenPipeError):
            return b"HTTP/1.1 0 closed before all of it was sent"
        return found


def test_odd_requests_are_refused(client, port):
    host = f"Host: 127.0.0.1:{port}\r\n".encode()
    post = b"POST /api/join HTTP/1.1\r\n" + host + f"Origin: http://127.0.0.1:{port}\r\n".encode()
    post += b"Content-Type: application/json\r\n"
    status = lambda content: int(raw(port, content).split()[1])
    assert status(post + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n") == 411
    assert status(post + b"\r\n") == 411
    assert status(post + b"Content-Length: -5\r\n\r\n") == 400
    assert status(post + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}") == 400
    assert status(b"GET / HTTP/1.1\r\n" + host + b"X: " + b"a" * 100_000 + b"\r\n\r\n") in (0, 400, 431)
    assert status(b"GET / HTTP/1.1\r\nHost: a\r\n" + host + b"\r\n") in (400, 421)
    for method in ("PUT", "DELETE", "TRACE", "OPTIONS", "PATCH"):
        assert client.ask("/api/state", method=method)[0] == 405
    assert client.ask("/api/state", method="HEAD")[0] == 200
    assert client.ask("/api/join")[0] == 405  # GET never changes state


def test_every_reply_forbids_scripts_from_elsewhere(client):
    for path in ("/", "/study.js", "/api/state", "/nowhere"):
        _, headers, body = client.ask(path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    page = client.ask("/")[2]
    assert b"http://" not in page and b"https://" not in page and b"<script>" not in page
    sizes = [len(client.ask(path)[2]) for path in ("/", "/study.js", "/study.css")]
    assert sum(sizes) < 200_000
    cookie = client.join()[1]["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie


def test_wording_and_texts_are_sent_as_text(tmp_path):
    own = {"title": "<script>alert(1)</script>", "question": '"><img src=x onerror=alert(1)>'}
    with serving(make_study(tmp_path / "s", medium="text", own=own)) as port:
        client = Client(port)
        assert client.ask("/api/state")[1]["content-type"] == "application/json"
        assert client.state()["wording"]["title"] == own["title"]
        client.join()
        assert client.state()["trial"]["items"][0]["text"].startswith(("text", "e"))


def test_invitations_are_for_one_rater_each(tmp_path):
    study = make_study(tmp_path / "s")
    [(rater, token)] = open_study(study).invite(1)
    with serving(study, open=False) as port:
        assert Client(port).join()[0] == 403
        assert Client(port).join(invitation="guess")[0] == 403
        first, second = Client(port), Client(port)
        assert first.join(invitation=token)[0] == 200
        first.answer(first.state()["trial"]["id"])
        assert second.join(invitation=token)[0] == 200  # the link again: the same rater, on another device
        assert second.state()["trial"]["number"] == 2
        assert first.state() == second.state()
        third = Client(port)
        assert third.ask("/api/join", {"agreed": False, "invitation": token})[0] == 200  # agreed before
        assert (
            Client(port).ask("/api/join", {"agreed": False, "invitation": open_study(study).invite(1)[0][1]})[0] == 403
        )
    assert [one["rater"] for one in open_study(study).raters()] == [rater]
    assert token not in (study / "study.db").read_bytes().decode("latin-1")


def test_too_many_raters_are_refused(tmp_path, monkeypatch):
    study = make_study(tmp_path / "s", most_raters=2)
    with serving(study) as port:
        assert [Client(port).join()[0] for _ in range(3)] == [200, 200, 429]
        monkeypatch.setattr("gen_jax.applications.study.server.ADMISSIONS", 3)
        assert Client(port).join()[0] == 429


def test_a_full_disk_stores_nothing_and_says_so(tmp_path, monkeypatch):
    study = make_study(tmp_path / "s")

    class Failing(sqlite3.Connection):
        full = False

        def execute(self, statement, *more):
            if self.full and statement.startswith(("INSERT", "COMMIT")):
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(statement, *more)

    connect = sqlite3.connect
    monkeypatch.setattr(
        "gen_jax.applications.study.store.sqlite3.connect", lambda *a, **k: connect(*a, factory=Failing, **k)
    )
    with serving(study) as port:
        client = Client(port)
        client.join()
        before = client.state()
        Failing.full = True
        status, _, body = client.answer(before["trial"]["id"])
        assert status == 503 and b"unsaved" in body and client.state() == before
        Failing.full = False
        assert client.answer(before["trial"]["id"])[0] == 200 and client.state()["trial"]["number"] == 2


def test_slow_clients_do_not_hold_up_others(port, client):
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    for one in slow:
        one.sendall(b"GET / HTTP/1.1\r\nHost: 127")
    began = time.perf_counter()
    assert client.ask("/")[0] == 200 and time.perf_counter() - began < 2
    [one.close() for one in slow]


def test_pictures_that_were_exchanged_are_refused(tmp_path):
    study = make_study(tmp_path / "s")
    first = sorted((study / "stimuli").iterdir())[0]
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(UserError, match="put it back"), serving(study):
        pass


def test_a_protocol_is_frozen_by_the_first_rater(tmp_path):
    study = make_study(tmp_path / "s")
    edited(study, least_passed=0.5)
    assert not open_study(study).refrozen
    edited(study, least_passed=0.6)
    store = open_study(study)
    assert store.refrozen
    store.admit(simulated=True)
    store.close()
    edited(study, least_passed=0.65)
    store = open_study(study)  # a rehearsal freezes nothing, and is forgotten
    assert store.refrozen and store.count("rater") == store.count("trial") == 0
    edited(study, least_passed=0.6)
    store = open_study(study)
    store.admit()
    store.close()
    edited(study, least_passed=0.7)
    with pytest.raises(UserError, match="edited after the first rater"):
        open_study(study)
    edited(study, least_passed=0.6)
    assert isinstance(open_study(study), Store)
