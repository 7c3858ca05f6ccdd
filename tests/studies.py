"""Studies of random pictures or texts for tests, without models, and their server in a thread or a process."""

import contextlib
import http.client
import json
import socket
import threading
import time

import numpy as np

from gen_jax.applications.study.creation import Drawn, write_stimuli
from gen_jax.applications.study.protocol import Protocol, Source, wording
from gen_jax.applications.study.server import StudyServer, web_server
from gen_jax.applications.study.store import open_study


def make_study(folder, kind="turing", models=2, n=20, medium="image", own=None, shape=(6, 5, 1), **options):
    """The folder of a study: the real source is brighter than the models."""
    rng, count = np.random.default_rng(0), n + 12
    sources = (Source("real", True), *(Source(f"model{i}", False, f"runs/model{i}") for i in range(models)))
    options = {"trials": 12, "practice": 2, "catch": 2, **options}
    labels = [str(i % 3) for i in range(count)]
    drawn = []
    for number in range(len(sources)):
        images = rng.integers(0, 256 - 40 * number, (count, *shape), np.uint8)
        contents = images if medium == "image" else [f"text {number}, {i}" for i in range(count)]
        given = labels if kind == "match" else [f"prompt {i}" for i in range(count)] if medium == "text" else ()
        drawn.append(Drawn(contents, range(count), given))
    words = wording(kind, medium, options["trials"], own)
    size = shape[:2] if medium == "image" else (0, 0)
    protocol = Protocol(kind, sources, words, medium, "pictures", "test", size, 3, **options)
    folder.mkdir()
    write_stimuli(folder, protocol, drawn)
    return folder


def free_port():
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return tried.getsockname()[1]


@contextlib.contextmanager
def serving(folder, **options):
    """The port of a server of a study, in a thread of this process."""
    port, study = free_port(), StudyServer(open_study(folder), **options)
    server = web_server(study, "127.0.0.1", port)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join()


class Client:
    """A rater's browser without a page: keeps the cookie and sends the headers that the page's script sends."""

    def __init__(self, port):
        self.port, self.cookie = port, ""

    def ask(self, path, content=None, method=None, headers=None, body=None):
        """(status, headers, body) of a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        given = {"Cookie": self.cookie} if self.cookie else {}
        if content is not None or body is not None:
            body = json.dumps(content).encode() if body is None else body
            given |= {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
        given |= headers or {}
        given = {name: value for name, value in given.items() if value is not None}
        method = method or ("POST" if body is not None else "GET")
        try:
            connection.request(method, path, body, given)
            response = connection.getresponse()
        except (ConnectionResetError, BrokenPipeError):  # refused before the body was read
            connection.request(method, path, body, given)
            response = connection.getresponse()
        found = response.status, dict(response.getheaders()), response.read()
        connection.close()
        if "set-cookie" in found[1]:
            self.cookie = found[1]["set-cookie"].split(";")[0]
        return found

    def state(self):
        return json.loads(self.ask("/api/state")[2])

    def join(self, **more):
        return self.ask("/api/join", {"agreed": True, "invitation": "", "screen": "800x600@1", **more})

    def answer(self, trial, choice=0, rt=900.0, **more):
        return self.ask("/api/answer", {"trial": trial, "choice": choice, "rt": rt, "onset": 5.0, **more})

    def finish(self, choose=lambda trial: 0):
        """Answers all trials that are left; returns the last state."""
        while (state := self.state())["page"] == "trial":
            assert self.answer(state["trial"]["id"], choose(state["trial"]))[0] == 200
        return state


def edited(folder, **changes):
    """Changes fields of the protocol as a person with an editor would."""
    path = folder / "protocol.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=2))


__all__ = ["Client", "edited", "free_port", "make_study", "serving"]
