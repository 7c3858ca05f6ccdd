"""The answers of a study in SQLite: each is on disk before the next trial is sent, and none is taken twice."""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gen_jax.applications.study.plan import Planned, draw_trials
from gen_jax.applications.study.protocol import Protocol, Stimulus, read_protocol, read_stimuli
from gen_jax.errors import UserError

__all__ = ["Conflict", "Full", "Refused", "Store", "Trial", "Unsaved", "open_study"]

TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS invitation (token TEXT PRIMARY KEY, rater TEXT UNIQUE NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS rater (
  id TEXT PRIMARY KEY, number INTEGER UNIQUE NOT NULL, admitted REAL NOT NULL, screen TEXT NOT NULL,
  simulated INTEGER NOT NULL, code TEXT UNIQUE NOT NULL, finished REAL) STRICT;
CREATE TABLE IF NOT EXISTS session (
  digest TEXT PRIMARY KEY, rater TEXT NOT NULL REFERENCES rater ON DELETE CASCADE) STRICT;
CREATE TABLE IF NOT EXISTS trial (
  id TEXT PRIMARY KEY, rater TEXT NOT NULL REFERENCES rater ON DELETE CASCADE, position INTEGER NOT NULL,
  role TEXT NOT NULL, given TEXT NOT NULL, expected INTEGER, views INTEGER NOT NULL DEFAULT 0,
  UNIQUE (rater, position)) STRICT;
CREATE TABLE IF NOT EXISTS shown (
  token TEXT PRIMARY KEY, trial TEXT NOT NULL REFERENCES trial ON DELETE CASCADE, slot INTEGER NOT NULL,
  stimulus TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS shown_of_trial ON shown (trial);
CREATE TABLE IF NOT EXISTS answer (
  trial TEXT PRIMARY KEY REFERENCES trial ON DELETE CASCADE, choice INTEGER NOT NULL, rt_ms REAL, onset_ms REAL,
  hidden INTEGER NOT NULL, at REAL NOT NULL) STRICT;
"""
BACKUPS = 3
BACKUP_EVERY = 200  # answers
GIVEN = -1  # slot of the description


class Refused(Exception):
    """No such session, invitation, trial or picture."""


class Conflict(Exception):
    """The trial has been answered, or is not the one to be answered now."""


class Full(Exception):
    """The study has as many raters as it takes, or too many came at once."""


class Unsaved(OSError):
    """The disk is full or fails; nothing was stored."""


class Trial(NamedTuple):
    """The trial that a rater has to answer now. views: how often it was shown."""

    id: str
    role: str
    number: int  # among the trials that count, or among those of practice; from 1
    total: int
    tokens: tuple[str, ...]  # of stimuli, in the order shown
    stimuli: tuple[str, ...]
    given: str  # token of the description, or ""
    given_stimulus: str
    expected: int | None
    views: int


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


class Store:
    """The database of a study. Use one from one thread only."""

    def __init__(self, folder: Path, protocol: Protocol, digest: str, stimuli: Mapping[str, Stimulus]):
        self.folder, self.protocol, self.stimuli = folder, protocol, stimuli
        self.path, self._since_backup = folder / "study.db", 0
        self._check()
        self.connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=10)
        for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
            self.connection.execute(f"PRAGMA {setting}")
        self.connection.executescript(TABLES)
        self.refrozen = self._freeze(digest)

    def _check(self) -> None:
        """Raises UserError if the database is damaged."""
        if not self.path.exists():
            return
        try:
            with closing(sqlite3.connect(self.path, timeout=10)) as connection:
                found = connection.execute("PRAGMA quick_check").fetchone()[0]
        except sqlite3.OperationalError as error:  # locked, no permission
            raise UserError(f"{self.path} cannot be opened: {error}") from None
        except sqlite3.DatabaseError as error:
            found = str(error)
        if found != "ok":
            kept = self.backups()
            advice = f"copy the last good backup over it: {kept[-1]}" if kept else "there is no backup"
            raise UserError(f"{self.path} is damaged ({found.splitlines()[0]}); {advice}")

    def _freeze(self, digest: str) -> bool:
        """Whether the protocol was edited before the first person began; afterwards an edited one raises UserError.

        Simulated raters of another protocol are deleted.
        """
        with self._writing():
            row = self.connection.execute("SELECT value FROM meta WHERE name = 'protocol'").fetchone()
            edited = row is not None and row[0] != digest
            if edited and self.count("rater WHERE simulated = 0"):
                raise UserError(
                    f"{self.folder / 'protocol.json'} was edited after the first rater had begun: put it back as it "
                    "was, or create another study"
                )
            if edited:
                self.connection.execute("DELETE FROM rater")
            self.connection.execute("INSERT OR REPLACE INTO meta VALUES ('protocol', ?)", (digest,))
        return edited

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction, durable when it ends. Raises Unsaved if it cannot be."""
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            yield
            self.connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            self._roll_back()
            raise Unsaved(str(error)) from error
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def count(self, table: str) -> int:
        [n] = self.connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        return n

    def invite(self, n: int) -> list[tuple[str, str]]:
        """(rater, token) of n new invitations; only digests of tokens are stored."""
        made = [(f"r{secrets.token_hex(4)}", secrets.token_urlsafe(16)) for _ in range(n)]
        with self._writing():
            self.connection.executemany("INSERT INTO invitation VALUES (?, ?)", [(_hashed(t), r) for r, t in made])
        return made

    def invited(self, token: str) -> str | None:
        """The rater of an invitation; None if there is none such."""
        row = self.connection.execute("SELECT rater FROM invitation WHERE token = ?", (_hashed(token),)).fetchone()
        return None if row is None else row[0]

    def admit(self, invitation: str = "", screen: str = "", simulated: bool = False) -> tuple[str, str]:
        """(rater, session) of a new rater, whose trials are drawn; of a used invitation, a new session of its rater."""
        name = self.invited(invitation) if invitation else f"r{secrets.token_hex(4)}"
        if name is None:
            raise Refused("there is no such invitation")
        session = secrets.token_urlsafe(24)
        with self._writing():
            if not self.knows(name):
                if not simulated and self.count("rater WHERE simulated = 0") >= self.protocol.most_raters:
                    raise Full("the study has as many raters as its protocol admits")
                self._add(name, screen, simulated)
            self.connection.execute("INSERT INTO session VALUES (?, ?)", (_hashed(session), name))
        return name, session

    def knows(self, rater: str) -> bool:
        """Whether a rater has begun."""
        return self.connection.execute("SELECT 1 FROM rater WHERE id = ?", (rater,)).fetchone() is not None

    def _add(self, name: str, screen: str, simulated: bool) -> None:
        [number] = self.connection.execute("SELECT coalesce(max(number), -1) + 1 FROM rater").fetchone()
        row = (name, number, time.time(), screen, int(simulated), secrets.token_hex(4).upper())
        self.connection.execute("INSERT INTO rater VALUES (?, ?, ?, ?, ?, ?, NULL)", row)
        counts = dict(
            self.connection.execute(
                "SELECT stimulus, count(*) FROM shown JOIN trial ON trial.id = shown.trial "
                "JOIN rater ON rater.id = trial.rater WHERE slot >= 0 AND simulated = ? GROUP BY stimulus",
                (int(simulated),),
            )
        )
        rng = np.random.default_rng([self.protocol.seed, number])
        for position, planned in enumerate(draw_trials(self.protocol, self.stimuli, counts, rng)):
            self._plan(name, position, planned)

    def _plan(self, rater: str, position: int, planned: Planned) -> None:
        trial = secrets.token_hex(12)
        row = (trial, rater, position, planned.role, planned.given, planned.expected)
        self.connection.execute("INSERT INTO trial VALUES (?, ?, ?, ?, ?, ?, 0)", row)
        slots = list(enumerate(planned.stimuli)) + ([(GIVEN, planned.given)] if planned.given else [])
        rows = [(secrets.token_hex(12), trial, slot, stimulus) for slot, stimulus in slots]
        self.connection.executemany("INSERT INTO shown VALUES (?, ?, ?, ?)", rows)

    def rater(self, session: str) -> str:
        row = self.connection.execute("SELECT rater FROM session WHERE digest = ?", (_hashed(session),)).fetchone()
        if row is None:
            raise Refused("there is no such session")
        return row[0]

    def current(self, rater: str) -> Trial | None:
        """The first trial of a rater without an answer; None once all are answered."""
        row = self.connection.execute(
            "SELECT trial.id, role, position, given, expected, views FROM trial "
            "LEFT JOIN answer ON answer.trial = trial.id "
            "WHERE rater = ? AND answer.trial IS NULL ORDER BY position LIMIT 1",
            (rater,),
        ).fetchone()
        if row is None:
            return None
        trial, role, position, given, expected, views = row
        practice = self.protocol.practice
        shown = dict(self._shown(trial))
        slots = [slot for slot in shown if slot >= 0]
        total = practice if role == "practice" else self.protocol.trials + self.protocol.catch
        number = position + 1 - (0 if role == "practice" else practice)
        tokens, stimuli = zip(*(shown[slot] for slot in slots))
        described = shown.get(GIVEN, ("",))[0]
        return Trial(trial, role, number, total, tokens, stimuli, described, given, expected, views)

    def view(self, rater: str, trial: str) -> None:
        """Counts that the current trial of a rater is shown."""
        with self._writing():
            now = self.current(rater)
            if now is None or now.id != trial:
                raise Conflict("it was answered")
            self.connection.execute("UPDATE trial SET views = views + 1 WHERE id = ?", (trial,))

    def _shown(self, trial: str) -> list[tuple[int, tuple[str, str]]]:
        rows = self.connection.execute(
            "SELECT slot, token, stimulus FROM shown WHERE trial = ? ORDER BY slot", (trial,)
        )
        return [(slot, (token, stimulus)) for slot, token, stimulus in rows]

    def stimulus(self, rater: str, token: str) -> tuple[Stimulus, bool]:
        """The stimulus behind a token of the rater's current trial or of those before, and whether it is shown as
        what is given."""
        row = self.connection.execute(
            "SELECT shown.stimulus, slot, position FROM shown JOIN trial ON trial.id = shown.trial "
            "WHERE token = ? AND rater = ?",
            (token, rater),
        ).fetchone()
        now = self.connection.execute(
            "SELECT count(*) FROM answer JOIN trial ON trial.id = answer.trial WHERE rater = ?", (rater,)
        ).fetchone()
        if row is None or row[2] > now[0]:
            raise Refused("there is no such picture")
        return self.stimuli[row[0]], row[1] == GIVEN

    def answer(
        self, rater: str, trial: str, choice: int, rt_ms: float | None, onset_ms: float | None, hidden: bool
    ) -> Trial:
        """Stores an answer to the current trial of a rater, which is returned; it is on disk afterwards."""
        with self._writing():
            now = self.current(rater)
            if now is None or now.id != trial:
                known = self.connection.execute("SELECT 1 FROM trial WHERE id = ? AND rater = ?", (trial, rater))
                raise Conflict("it was answered") if known.fetchone() else Refused("there is no such trial")
            row = (trial, choice, rt_ms, onset_ms, int(hidden or now.views > 1), time.time())
            self.connection.execute("INSERT INTO answer VALUES (?, ?, ?, ?, ?, ?)", row)
            if now.role != "practice" and now.number == now.total:
                self.connection.execute("UPDATE rater SET finished = ? WHERE id = ?", (row[-1], rater))
        self._since_backup += 1
        if self._since_backup >= BACKUP_EVERY:
            self.back_up()
        return now

    def code(self, rater: str) -> str:
        [code] = self.connection.execute("SELECT code FROM rater WHERE id = ?", (rater,)).fetchone()
        return code

    def delete(self, rater: str) -> int:
        """Deletes a rater, by pseudonym or code, with all answers, here and in the backups; returns their number."""
        with self._writing():
            row = self.connection.execute("SELECT id FROM rater WHERE code = ?", (rater,)).fetchone()
            rater = rater if row is None else row[0]
            [n] = self.connection.execute(
                "SELECT count(*) FROM answer JOIN trial ON trial.id = answer.trial WHERE rater = ?", (rater,)
            ).fetchone()
            found = self.connection.execute("DELETE FROM rater WHERE id = ?", (rater,)).rowcount
            found += self.connection.execute("DELETE FROM invitation WHERE rater = ?", (rater,)).rowcount
        if not found:
            raise UserError(f"there is no rater {rater!r}; `study status` lists them")
        old, [busy, *_] = self.backups(), self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy or not self.back_up():
            raise UserError(
                f"{rater} is deleted, but traces are left in the log or the backups of {self.path}: stop the server, "
                "make room on the disk, and delete the folder `backups`"
            )
        for path in [*old, *(self.folder / "backups").glob("*.draft")]:
            path.unlink(missing_ok=True)
        return n

    def answers(self) -> list[dict[str, Any]]:
        """All answers in the order they were given, with their trials and raters."""
        rows = self.connection.execute(
            "SELECT rater.id, rater.simulated, rater.finished, rater.code, trial.id, position, role, given, expected, "
            "choice, rt_ms, onset_ms, hidden, at FROM answer JOIN trial ON trial.id = answer.trial "
            "JOIN rater ON rater.id = trial.rater "
            "ORDER BY at, position"
        ).fetchall()
        names = (
            "rater simulated finished code trial position role given expected choice rt_ms onset_ms hidden at".split()
        )
        shown: dict[str, list[str]] = {}
        for trial, stimulus in self.connection.execute(
            "SELECT trial, stimulus FROM shown WHERE slot >= 0 ORDER BY slot"
        ):
            shown.setdefault(trial, []).append(stimulus)
        return [{**dict(zip(names, row)), "stimuli": tuple(shown[row[4]])} for row in rows]

    def raters(self) -> list[dict[str, Any]]:
        """All raters with their numbers of answers and trials."""
        rows = self.connection.execute(
            "SELECT rater.id, admitted, finished, simulated, screen, code, count(answer.trial), count(*) FROM rater "
            "JOIN trial ON trial.rater = rater.id LEFT JOIN answer ON answer.trial = trial.id GROUP BY rater.id "
            "ORDER BY number"
        )
        names = "rater admitted finished simulated screen code answers trials".split()
        return [dict(zip(names, row)) for row in rows]

    def backups(self) -> list[Path]:
        """Backups, the oldest first."""
        return sorted((self.folder / "backups").glob("study-*.db"))

    def back_up(self) -> bool:
        """Copies the database to a new file of `backups`, of which three are kept; returns whether it could."""
        self._since_backup = 0
        folder = self.folder / "backups"
        folder.mkdir(exist_ok=True)
        path = folder / f"study-{time.time_ns():020d}.db"
        draft = path.with_suffix(".draft")
        try:
            with closing(sqlite3.connect(draft)) as copy:
                self.connection.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")
            os.replace(draft, path)
        except (sqlite3.OperationalError, OSError):  # the answers themselves are safe
            draft.unlink(missing_ok=True)
            return False
        for old in self.backups()[:-BACKUPS]:
            old.unlink(missing_ok=True)
        return True

    def close(self) -> None:
        self.connection.close()


def open_study(folder: Path) -> Store:
    """The store of a study. Raises UserError if it is none, or was edited, damaged or made by another version."""
    protocol, digest = read_protocol(folder)
    stimuli = read_stimuli(folder, protocol)
    try:
        return Store(folder, protocol, digest, stimuli)
    except (sqlite3.DatabaseError, Unsaved) as error:
        raise UserError(f"{folder / 'study.db'} cannot be opened: {error}") from None
