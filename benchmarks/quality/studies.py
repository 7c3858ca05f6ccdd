"""Human studies: coverage and power of the analysis, a study from runs to report, load, and kills.

python -m benchmarks.quality.studies [--runs RUN ...]

Without `--runs` the configs vae_digits, dcgan_digits and nsf_digits are trained first, into `runs/studies`. Coverage is
of 95 % intervals over 2,000 studies by raters that differ; raters of the demonstration are simulated and answer over
HTTP as the page does.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.harness import ROOT, Report
from gen_jax.applications.study.simulation import SimulatedRater
from gen_jax.applications.study.store import open_study
from gen_jax.evaluation.human import bradley_terry, by_rater, detection, mean_ratings, power_by_rater

CONFIGS = ("vae_digits", "dcgan_digits", "nsf_digits")
ABILITY = (1.8, 0.6, 1.2)  # d' of the simulated raters for each
RATERS, TRIALS, DRAWS = 12, 30, 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, nargs=3)
    chosen = parser.parse_args()
    sys.argv = sys.argv[:1]  # the report has options of its own
    report = Report("studies")
    coverage(report)
    for rate in (0.3, 0.4, 0.45):
        power = {f"{r} x {t}": power_by_rater(rate, r, t) for r, t in ((5, 20), (10, 20), (20, 20), (30, 50))}
        for design, value in power.items():
            report.fact(f"power to tell a deception rate of {rate:.0%} from 50 %, {design} raters x trials", value, "")
    runs = chosen.runs or [trained(config) for config in CONFIGS]
    with tempfile.TemporaryDirectory() as folder:
        demonstrate(report, runs, Path(folder) / "demonstration")
        load(report, created(runs, Path(folder) / "load", "--trials", "200"))
        kills(report, created(runs, Path(folder) / "kills", "--trials", "200"))
    report.finish()


def coverage(report: Report) -> None:
    """Shares of 95 % intervals that hold the truth."""
    rng = np.random.default_rng(0)
    rater = np.repeat(np.arange(RATERS), TRIALS)

    def rate():
        return by_rater(rng.binomial(TRIALS, rng.beta(3.6, 5.4, RATERS)) / TRIALS)

    def sensitivity():
        criterion = 0.5 + 0.4 * rng.normal(size=RATERS)
        counts = [rng.binomial(TRIALS, stats.norm.sf(criterion - d)) for d in (1.0, 0.0)]
        full = np.full(RATERS, TRIALS)
        return detection(np.c_[counts[0], full, counts[1], full]).sensitivity

    def strength():
        pairs = np.array([rng.choice(3, 2, replace=False) for _ in rater])
        logits = np.array([0.6, 0.0, -0.6])[pairs] @ [1, -1]
        first = rng.random(len(pairs)) < 1 / (1 + np.exp(-logits))
        return bradley_terry(np.c_[pairs, ~first], rater, 3).strengths[0]

    def rating():
        item = rng.integers(0, 3, len(rater))
        y = np.array([1.0, 2.0, 2.5])[item] + 0.7 * rng.normal(size=RATERS)[rater] + rng.normal(size=len(rater))
        return mean_ratings(y, item, rater, 3)[1]

    # criteria differ by .4, so that d' of pooled answers is smaller than each rater's
    truths = {"deception rate": (rate, 0.4), "sensitivity d'": (sensitivity, 1 / np.hypot(1, 0.4))}
    truths |= {"Bradley-Terry strength": (strength, 0.6), "mean rating": (rating, 2.0)}
    for name, (make, truth) in truths.items():
        found = [make() for _ in range(DRAWS)]
        share = float(np.mean([one.low <= truth <= one.high for one in found]))
        report.fact(
            f"coverage: {name}, {RATERS} raters x {TRIALS} answers: {share:.2%}, off by",
            abs(share - 0.95),
            "",
            "<= 0.015",
        )


def command(*words: Any) -> None:
    subprocess.run([sys.executable, "-m", "gen_jax", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def trained(config: str) -> Path:
    folder = ROOT / "runs" / "studies" / config
    command("train", config, "--workdir", folder, "--no-progress")
    return folder


def created(runs: list[Path], folder: Path, *options: str) -> Path:
    command("study", "create", *runs, "--out", folder, *options)
    return folder


class Served:
    """A server of a study in a process of its own."""

    def __init__(self, study: Path, port: int = 0):
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", port))
            self.port = free.getsockname()[1]
        words = [sys.executable, "-m", "gen_jax", "study", "serve", str(study), "--port", str(self.port)]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    return
            except OSError:
                time.sleep(0.01)

    def memory(self) -> float:
        """Resident memory in megabytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024

    def stop(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait()


class Browser:
    """Sends what the page sends, over one connection."""

    def __init__(self, port: int):
        self.port, self.cookie, self.connection = port, "", http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def ask(self, path: str, content: Any = None) -> tuple[int, bytes]:
        headers = {"Cookie": self.cookie} if self.cookie else {}
        if content is not None:
            headers |= {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
        body = None if content is None else json.dumps(content)
        try:
            self.connection.request("GET" if body is None else "POST", path, body, headers)
            response = self.connection.getresponse()
            found = response.status, response.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            raise
        if cookie := response.getheader("set-cookie"):
            self.cookie = cookie.split(";")[0]
        return found

    def join(self) -> dict[str, Any]:
        status, body = self.ask("/api/join", {"agreed": True, "invitation": "", "screen": ""})
        if status != 200:
            raise RuntimeError(f"{status}: {body!r}")
        return json.loads(body)

    def answer(self, trial: str, choice: int) -> tuple[int, bytes]:
        said = {"trial": trial, "choice": choice, "rt": 900.0, "onset": 1.0, "hidden": False}
        return self.ask("/api/answer", said)


def demonstrate(report: Report, runs: list[Path], folder: Path) -> None:
    """A study of real digits and three models, answered by simulated raters over HTTP, and its analysis."""
    began = time.perf_counter()
    created(runs, folder)
    served = Served(folder)
    report.fact(
        "bytes of the page, without stimuli", sum(len(Browser(served.port).ask(p)[1]) for p in PAGE), "", "<= 200000"
    )
    store, waited, answers = open_study(folder), [], 0
    for number in range(20):
        browser, asked = Browser(served.port), time.perf_counter()
        state = browser.join()
        browser.ask(state["trial"]["items"][0]["picture"])
        waited.append(time.perf_counter() - asked)
        name, rng = store.rater(browser.cookie.split("=")[1]), np.random.default_rng(number)
        rater = SimulatedRater(store.protocol, store.stimuli, (0.0, *ABILITY), 0.0, rng, 0.2 * rng.normal())
        while (trial := store.current(name)) is not None:
            for token in trial.tokens:
                browser.ask(f"/picture/{token}")
            status, _ = browser.answer(trial.id, rater.choose(trial))
            answers += status == 200
    report.fact("seconds until the first trial of a rater is there, at most", max(waited), "s", "<= 1")
    served.stop()
    command("study", "analyze", folder)
    seconds = time.perf_counter() - began
    report.fact(f"study from runs to report: 20 simulated raters, {answers:,} answers", seconds, "s", "<= 120")
    found = json.loads((folder / "analysis" / "analysis.json").read_text())["intervals"]["sensitivity d'"]
    for (model, one), ability in zip(found.items(), ABILITY):
        expected = ability / np.hypot(1, 0.2)
        report.fact(
            f"d' of {model}: [{one['low']:.2f}, {one['high']:.2f}], simulated with {ability:g}", one["value"], ""
        )
        report.fact(
            f"d' of {model}: whether the interval holds {expected:.2f}",
            float(one["low"] <= expected <= one["high"]),
            "",
            ">= 1",
        )


PAGE = ("/", "/study.js", "/study.css")


def load(report: Report, study: Path) -> None:
    """Answers per second, and what raters notice of junk and of slow clients."""
    served = Served(study)
    browsers = [Browser(served.port) for _ in range(20)]
    states = [browser.join() for browser in browsers]

    def answering(browser: Browser, state: dict[str, Any], until: float, waits: list[float], thinking: float) -> None:
        while time.perf_counter() < until and state["page"] == "trial":
            time.sleep(thinking)
            asked = time.perf_counter()
            status, body = browser.answer(state["trial"]["id"], 0)
            if status == 200:
                waits.append(time.perf_counter() - asked)
                state = json.loads(body)

    waits: list[float] = []
    began = time.perf_counter()
    together([(answering, *both, began + 10, waits, 0.0) for both in zip(browsers, states)])
    report.fact("answers per second, 20 raters at once", len(waits) / (time.perf_counter() - began), "")
    slow = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(100)]
    for one in slow:
        one.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.")
    sent, waits, until = [], [], time.perf_counter() + 10
    browsers = [Browser(served.port) for _ in range(5)]
    states = [browser.join() for browser in browsers]
    junk = [(flood, served.port, until, sent) for _ in range(4)]
    together([*junk, *((answering, *both, until, waits, 0.1) for both in zip(browsers, states))])
    report.fact("junk requests per second, beside 100 slow clients", sum(sent) / 10, "", ">= 1000")
    report.fact("answers per second meanwhile, 5 raters that think for .1 s", len(waits) / 10, "")
    report.fact("slowest answer meanwhile", max(waits), "s", "<= 2")
    report.fact("memory of the server", served.memory(), "MB", "<= 200")
    for one in slow:
        one.close()
    served.stop()


def flood(port: int, until: float, sent: list[int]) -> None:
    """Requests for what is not there, many on each connection."""
    ask = b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    while time.perf_counter() < until:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            for _ in range(100):
                connection.sendall(ask)
                if not connection.recv(65536):
                    break
                sent.append(1)


def together(calls: list[tuple]) -> None:
    threads = [threading.Thread(target=f, args=arguments) for f, *arguments in calls]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]


def kills(report: Report, study: Path, times: int = 50) -> None:
    """The server killed at random instants while raters answer: what was confirmed must be there, once."""
    served = Served(study)
    browsers, confirmed, ended = [Browser(served.port) for _ in range(20)], [{} for _ in range(20)], threading.Event()
    [browser.join() for browser in browsers]

    def answering(browser: Browser, mine: dict[str, int]) -> None:
        while not ended.is_set():
            try:
                state = json.loads(browser.ask("/api/state")[1])
                if state["page"] != "trial":
                    return
                choice = len(mine) % 2
                if browser.answer(state["trial"]["id"], choice)[0] in (200, 409):
                    mine[state["trial"]["id"]] = choice
            except (OSError, ValueError, http.client.HTTPException):
                time.sleep(0.01)

    raters = [threading.Thread(target=answering, args=both) for both in zip(browsers, confirmed)]
    [rater.start() for rater in raters]
    for _ in range(times):
        time.sleep(random.uniform(0.05, 0.4))
        served.stop(signal.SIGKILL)
        served = Served(study, served.port)
    ended.set()
    [rater.join() for rater in raters]
    served.stop()
    with sqlite3.connect(study / "study.db") as connection:
        stored = dict(connection.execute("SELECT trial, choice FROM answer"))
    every = {trial: choice for mine in confirmed for trial, choice in mine.items()}
    lost = sum(stored.get(trial) != choice for trial, choice in every.items())
    report.fact(f"answers lost of {len(every):,} confirmed, {times} kills", lost, "", "<= 0")
    report.fact("answers confirmed twice", sum(map(len, confirmed)) - len(every), "", "<= 0")


if __name__ == "__main__":
    main()
