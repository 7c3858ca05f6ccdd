"""User errors and exit codes. The command line prints an error as one line and exits with its code.

Exit codes: 0 done, 2 usage error, 65 unreadable data, 70 NaN in training, 74 a checkpoint or file failed, 75 stopped
and saved (retry), 76 trained and saved, but a metric or plot failed.
"""

import functools
import inspect
import os
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

__all__ = [
    "Attempts",
    "CheckpointError",
    "DataError",
    "Incomplete",
    "NonFiniteError",
    "Preempted",
    "UserError",
    "check_takes",
    "code_of",
    "exits",
    "first_line",
    "place_of",
    "users_line",
]


class UserError(ValueError):
    """An invalid argument, knob or file; nothing has been started."""

    exit_code = 2


class DataError(OSError):
    """Data that can no longer be read while a run is going on; what was saved is kept."""

    exit_code = 65


class NonFiniteError(RuntimeError):
    """NaN or infinity in training; the last good checkpoint is kept."""

    exit_code = 70


class CheckpointError(OSError):
    """A checkpoint could not be written or read."""

    exit_code = 74


class Preempted(Exception):
    """The run was asked to stop; it has saved and can be resumed."""

    exit_code = 75


class Incomplete(Exception):
    """The run has been trained and saved, but metrics or plots are missing."""

    exit_code = 76


def place_of(function: Callable[..., Any]) -> str:
    """The file and line of a function's definition, as "file.py:31"."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        return f"{os.path.basename(inspect.getsourcefile(function) or '?')}:{inspect.getsourcelines(function)[1]}"
    except (OSError, TypeError):
        return "an unknown place"


def check_takes(function: Callable[..., Any], arguments: Sequence[str], what: str) -> None:
    """Raises UserError if a function cannot be called with these positional arguments. what: names it."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        raise UserError(f"{what}, at {place_of(function)}, must take ({', '.join(arguments)})") from None
    except ValueError:  # a built-in function without a signature
        return


def first_line(error: BaseException) -> str:
    """The first line of an error, with its type unless it is a ValueError written as a message, as models raise."""
    said = str(error).partition("\n")[0]
    return said if isinstance(error, ValueError) and said[:1].islower() else f"{type(error).__name__}: {said}"


def users_line(error: BaseException) -> str:
    """The innermost line of a traceback that is neither of this package nor of an installed one; "" if none is."""
    package = os.path.dirname(os.path.abspath(__file__))
    own = lambda file: not file.startswith((package, "<")) and "site-packages" not in file and "/lib/python" not in file
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if own(frame.filename)]
    inside = [frame for frame in frames if os.path.basename(frame.filename) not in ("train.py", "__main__.py")]
    return f"{os.path.basename(inside[-1].filename)}:{inside[-1].lineno}" if inside else ""


T = TypeVar("T")


class Attempts:
    """Calls metrics and plots, which may fail without an end to the run.

    The first failure of each is reported with its traceback, all are counted in `failed`. strict: let them end it.
    how: what the report says of it.
    """

    def __init__(self, strict: bool = False, how: str = "failed and is left out"):
        self.strict, self.how, self.failed = strict, how, Counter[str]()

    def __call__(self, name: str, call: Callable[[], T], otherwise: T) -> T:
        """The result of the call, or `otherwise` if it fails."""
        try:
            return call()
        except (DataError, NonFiniteError, CheckpointError):
            raise
        except Exception as error:
            if self.strict:
                raise
            self.failed[name] += 1
            if self.failed[name] == 1:
                said = str(error) if isinstance(error, UserError) else traceback.format_exc().rstrip()
                print(f"warning: the {name} {self.how}:\n{said}", file=sys.stderr)
            return otherwise


def exits(main: Callable[[], None]) -> None:
    """Runs a command line's `main`: the errors above become one line on stderr and their exit code."""
    code = 0
    warnings.formatwarning = lambda message, *where, **more: f"warning: {message}\n"
    try:
        main()
    except (UserError, DataError, NonFiniteError, CheckpointError, Preempted, Incomplete) as error:
        print(f"error: {error}" if code_of(error) != 75 else str(error), file=sys.stderr)
        code = code_of(error)
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 74
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if code and "jax" in sys.modules and sys.modules["jax"].process_count() > 1:
        os._exit(code)  # a regular exit would wait for the other processes, which wait for this one
    sys.exit(code)


def code_of(error: BaseException) -> int:
    return getattr(error, "exit_code", 1)
