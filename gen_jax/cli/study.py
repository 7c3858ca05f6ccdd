"""The commands `study create`, `serve`, `invite`, `simulate`, `status`, `analyze`, `export` and `delete-rater`."""

from __future__ import annotations

import contextlib
import math
import socket
import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from gen_jax.cli.options import DataDir, check_folder, check_results_folder, check_seed
from gen_jax.cli.usage import run_command
from gen_jax.errors import UserError

__all__ = ["COMMANDS", "main", "study_main"]

StudyFolder = Positional[Annotated[Path, arg(metavar="STUDY", help="the folder of a study")]]
Runs = Positional[Annotated[tuple[Path, ...], arg(metavar="RUN", help="the working directories of runs")]]


def create(
    workdirs: Runs,
    out: Path,
    kind: Literal["turing", "pairs", "rating", "match"] = "turing",
    n: int = 100,
    trials: int = 40,
    seed: int = 0,
    split: str = "test",
    with_real: bool = False,
    mean: bool = False,
    psi: float | None = None,
    temperature: float = 1.0,
    length: int = 40,
    exposure_ms: int = 0,
    catch: int = 4,
    practice: int = 4,
    raters: int = 10,
    wording: Path | None = None,
    step: str | None = None,
    data_dir: DataDir = None,
) -> None:
    """Draws the stimuli of a study and writes its protocol, frozen once the first rater has begun.

    Args:
        out: the folder of the study, which must not be there yet
        kind: turing: real or generated? pairs: which of two looks more real? rating: from bad to excellent; match: does
            it show what it should (its label, prompt or input)?
        n: stimuli of each model, and of the data
        trials: how many each rater judges, besides practice and catch trials
        seed: random seed of stimuli and orders
        split: where real stimuli are taken from, such as test or validation
        with_real: in pairs, compare with real stimuli too
        mean: of models with latent vectors, show the means of p(x | z)
        psi: truncation of style-based models
        temperature: divides the logits of texts that are generated
        length: tokens of a text, and of the prompt before it
        exposure_ms: how long a stimulus is shown; 0 for as long as the rater likes
        catch: trials with a scrambled stimulus, whose answer is obvious
        practice: trials before the others, with feedback
        raters: how many raters you expect; the power of the design is printed for them
        wording: a JSON file with texts for the page in place of the English ones
        step: a checkpoint's step, or "best"; by default the newest
    """
    from gen_jax.cli.study_create import Design, created

    check_seed(seed)
    for name, value, high in (("n", n, 10_000), ("length", length, 2000), ("raters", raters, 10_000)):
        if not 1 <= value <= high:
            raise UserError(f"--{name} must be between 1 and {high:,}, got {value}")
    if not 0 <= temperature < math.inf:
        raise UserError(f"--temperature must be 0 or more, got {temperature}")
    check_folder(out)
    if out.exists():
        raise UserError(f"--out {out}: is there already; studies are never written over")
    design = Design(
        kind, n, trials, seed, split, with_real, mean, psi, temperature, length, exposure_ms, catch, practice, raters
    )
    created(workdirs, out, design, wording, step, data_dir)


def serve(
    study: StudyFolder,
    host: str = "127.0.0.1",
    port: int = 8000,
    names: Annotated[tuple[str, ...], arg(name="name")] = (),
    open: bool = False,
) -> None:
    """Serves the page of a study until Ctrl-C; started again, it goes on where every rater was.

    Args:
        host: the address to listen at; 127.0.0.1 for this machine alone, 0.0.0.0 for the local network
        port: the port to listen at
        names: host names, besides addresses, under which raters reach this machine
        open: let everyone who reaches the page take part, without an invitation; always so on this machine alone
    """
    from gen_jax.applications.study.server import StudyServer, is_loopback, web_server
    from gen_jax.applications.study.store import open_study

    if not 1 <= port <= 65535:
        raise UserError(f"--port must be between 1 and 65535, got {port}")
    loopback = is_loopback(host)
    store = open_study(study)
    if store.refrozen:
        print("protocol.json was edited; nobody has begun, so that it is frozen anew")
    server = StudyServer(store, loopback, loopback or open, names)
    _check_port(host, port)
    if not loopback:
        who = "everyone who can reach it" if open else "those with an invitation (`gen_jax study invite`)"
        print(f"{host} is open to other machines: {who} can take part; traffic is not encrypted")
    address = f"http://{_shown(host)}:{port}"
    print(f"{study}: {address}/ (Ctrl-C stops it)", flush=True)
    if not loopback and not open:
        print(f"links: python -m gen_jax study invite {study} --n 10 --url {address}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        web_server(server, host, port).run()
    print("stopped; all answers are stored")


def _shown(host: str) -> str:
    """The address under which raters reach a host that is listened at."""
    if host in ("0.0.0.0", "::"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            probe.connect(("192.0.2.1", 9))  # sends nothing; says which address packets would have
            return probe.getsockname()[0]
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _check_port(host: str, port: int) -> None:
    """Raises UserError unless the port can be listened at."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        raise UserError(f"cannot listen at {host}, port {port}: {error.strerror}; choose another --port") from None


def invite(study: StudyFolder, n: int = 1, url: str = "http://127.0.0.1:8000") -> None:
    """Prints links, each for one rater; opened again, a link goes on with the same rater.

    Args:
        n: how many
        url: the address under which raters reach the page
    """
    from gen_jax.applications.study.store import open_study

    if not 1 <= n <= 10_000:
        raise UserError(f"--n must be between 1 and 10,000, got {n}")
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--url {url}: must begin with http:// or https://")
    for rater, token in open_study(study).invite(n):
        print(f"{rater}\t{url.rstrip('/')}/#invitation={token}")


def simulate(
    study: StudyFolder, raters: int = 10, ability: tuple[float, ...] = (1.0,), lapse: float = 0.0, seed: int = 0
) -> None:
    """Lets simulated raters answer, to try out the design and its analysis; they never count beside people.

    Args:
        raters: how many
        ability: d' between each model and real stimuli, in the order of the protocol; one number for all
        lapse: share of answers that are guesses
        seed: random seed
    """
    from gen_jax.applications.study.simulation import simulate as run
    from gen_jax.applications.study.store import open_study

    check_seed(seed)
    if not 1 <= raters <= 1000:
        raise UserError(f"--raters must be between 1 and 1,000, got {raters}")
    if not 0 <= lapse <= 1:
        raise UserError(f"--lapse is a share, got {lapse}")
    if not all(0 <= one <= 10 for one in ability):
        raise UserError(f"--ability takes numbers from 0 to 10, got {' '.join(f'{one:g}' for one in ability)}")
    store = open_study(study)
    models = [source.name for source in store.protocol.sources if not source.real]
    if len(ability) not in (1, len(models)):
        raise UserError(f"--ability takes one number, or one for each of {', '.join(models)}")
    answers = run(store, raters, ability if len(ability) > 1 else ability * len(models), lapse, seed)
    print(f"{raters} simulated raters gave {answers:,} answers")


def status(study: StudyFolder) -> None:
    """Lists raters, answers and exclusions, and whether the study may stop."""
    from gen_jax.applications.study.status import report
    from gen_jax.applications.study.store import open_study
    from gen_jax.evaluation.report import console

    store, out = open_study(study), console()
    for part in report(store):
        out.print(part)


def analyze(study: StudyFolder, out: Path | None = None, simulated: bool = False) -> None:
    """Analyzes the answers: tables, pictures, JSON and a page.

    Args:
        out: the folder for the results; by default STUDY/analysis
        simulated: analyze the simulated raters instead of people
    """
    from gen_jax.applications.study.analysis import analyzed
    from gen_jax.applications.study.report import write_report
    from gen_jax.applications.study.store import open_study
    from gen_jax.evaluation.report import console

    out = out or study / "analysis"
    check_results_folder(out)
    found = analyzed(open_study(study), simulated)
    terminal = console()
    for table in found.tables:
        terminal.print(table.rich())
    print(*found.notes, sep="\n")
    print("written:", *write_report(study, found, out))


def export(study: StudyFolder, out: Path) -> None:
    """Writes all answers, with a data dictionary beside them.

    Args:
        out: a table (.csv) or JSON (.json); the dictionary is OUT.dictionary.json
    """
    from gen_jax.applications.study.export import export_answers
    from gen_jax.applications.study.store import open_study
    from gen_jax.cli.options import check_ending

    check_ending(out, (".csv", ".json"))
    check_folder(out)
    n, dictionary = export_answers(open_study(study), out)
    print(f"{n:,} answers in {out}, described in {dictionary}")


def delete_rater(study: StudyFolder, rater: Positional[Annotated[str, arg(metavar="RATER")]]) -> None:
    """Deletes a rater with all answers, from backups too.

    Args:
        rater: the pseudonym or the completion code, as in `study status`
    """
    from gen_jax.applications.study.store import open_study

    n = open_study(study).delete(rater)
    print(f"{rater} and {n} answers are deleted, from the backups too; delete results and exports made before yourself")


COMMANDS = {
    "create": create,
    "serve": serve,
    "invite": invite,
    "simulate": simulate,
    "status": status,
    "analyze": analyze,
    "export": export,
    "delete-rater": delete_rater,
}


def study_main(arguments: list[str]) -> None:
    """`study COMMAND ...`."""
    run_command(COMMANDS, "gen_jax study", "Asks people about samples of models.", arguments or ["--help"])


def main() -> None:
    """Runs the command named by `sys.argv`, after the word study."""
    study_main(sys.argv[2:])
