"""Runs metrics on a model and formats the estimates."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gen_jax.core import State, averaged
from gen_jax.errors import Attempts, UserError, check_takes
from gen_jax.evaluation.metric import Estimate, Measure, Metric, Split, rounded, standard_error

__all__ = ["as_json", "console", "evaluator", "find_metrics", "finite", "from_json", "over_seeds", "table"]


def evaluator(
    model: Any, metrics: Sequence[Metric], seed: int = 0, attempt: Attempts | None = None
) -> Callable[[State, Split], dict[str, Estimate]]:
    """Makes (state, split) -> estimates by all metrics of a model, each compiled once.

    attempt: leaves out metrics that fail; without it, they raise.
    """
    measures = [(metric.__name__, _measure(metric, model)) for metric in metrics]
    attempt = attempt or Attempts(strict=True)

    def evaluate(state: State, split: Split) -> dict[str, Estimate]:
        state, found = averaged(state), {}
        for name, measure in measures:
            call = lambda name=name, measure=measure: _checked(name, measure(state, split, jax.random.key(seed)))
            found |= attempt(f"metric {name}", call, {})
        return found

    return evaluate


def _measure(metric: Metric, model: Any) -> Measure:
    """The measure of a metric for a model. Raises UserError if it is none."""
    measure, name = metric(model), metric.__name__
    said = f"the metric {name} (is it made by a function of settings? then write {name}())"
    if not callable(measure):
        raise UserError(f"{said} must return a function measure(state, split, key)")
    check_takes(measure, ("state", "split", "key"), said)
    return measure


def _checked(name: str, found: Any) -> Mapping[str, Estimate]:
    """The estimates of a metric. Raises UserError if they are none."""
    if isinstance(found, Mapping) and all(isinstance(one, Estimate) for one in found.values()):
        if odd := [one.better for one in found.values() if one.better not in ("", "higher", "lower")]:
            raise UserError(f'the metric {name} says better = {odd[0]!r}: it is "higher", "lower" or ""')
        return found
    odd = found
    if isinstance(found, Mapping):
        odd = next(value for value in found.values() if not isinstance(value, Estimate))
    raise UserError(f"the metric {name} must return {{name: Estimate}}; it returned a {type(odd).__name__}")


def over_seeds(found: Sequence[Mapping[str, Estimate]]) -> dict[str, Estimate]:
    """The means of the estimates of several seeds.

    The standard error of a mean is that over seeds, and that over examples, which all seeds share; the standard
    deviation over seeds is the spread. An estimate with the same value for every seed, such as a floor, is returned
    unchanged.
    """
    names = dict.fromkeys(name for estimates in found for name in estimates)
    return {name: _mean([estimates[name] for estimates in found if name in estimates]) for name in names}


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of an estimate over seeds."""
    first, values = estimates[0], [e.value for e in estimates]
    if len(set(values)) == 1:
        return first
    own, spread = float(np.mean([e.error for e in estimates])), float(np.std(values, ddof=1))
    error = math.hypot(standard_error(values), 0.0 if math.isnan(own) else own)
    how = _common([e.how for e in estimates])
    return first._replace(value=float(np.mean(values)), error=error, how=how, seeds=len(values), spread=spread)


def _common(notes: Sequence[str]) -> str:
    """A note that some seeds have, with their number; of notes that differ, the parts that all have."""
    said = dict.fromkeys(filter(None, notes))
    if len(said) == 1:
        [note] = said
        return note if all(notes) else f"{sum(map(bool, notes))} of {len(notes)} seeds: {note}"
    parts = [note.split(", ") for note in notes]
    return ", ".join(part for part in parts[0] if all(part in others for others in parts))


def find_metrics(metrics: Sequence[Metric], names: Sequence[str]) -> list[Metric]:
    """The metrics with these names: those of the experiment, or any of `gen_jax.evaluation`."""
    import gen_jax.evaluation as evaluation

    known = {metric.__name__: metric for metric in (*evaluation.METRICS, *metrics)}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"there is no metric {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return [known[name] for name in names]


def table(title: str, found: Mapping[str, Estimate]) -> Table:
    """The estimates as a table for the terminal."""
    out = Table(title=escape(title), title_justify="left")
    columns = ["metric", "value", "± s.e.", "unit", "kind", "n"] + ["how"] * any(
        e.how or e.seeds > 1 for e in found.values()
    )
    for column in columns:
        right = column in ("value", "± s.e.", "n")
        out.add_column(column, justify="right" if right else "left", no_wrap=column != "how")
    for name, e in found.items():
        value, error = rounded(e.value, e.error)
        how = ", ".join(filter(None, [_over(e), e.how]))
        out.add_row(*[name, value, error, e.unit, e.kind, str(e.n), how][: len(columns)])
    return out


def _over(e: Estimate) -> str:
    """The number of seeds and the deviation over them; "" for one."""
    spread = "" if math.isnan(e.spread) else f", which deviate by {e.spread:.2g}"
    return f"{e.seeds} seeds{spread}" if e.seeds > 1 else ""


def console() -> Console:
    """The terminal, or 120 columns if the output is redirected."""
    return Console(width=None if sys.stdout.isatty() else 120)


def as_json(found: Mapping[str, Estimate]) -> dict[str, dict[str, Any]]:
    """The estimates as plain JSON values, null for non-finite numbers."""
    return finite({name: e._asdict() for name, e in found.items()})


def finite(content: Any) -> Any:
    """JSON values, dicts and lists with null for numbers that are not finite."""
    if isinstance(content, Mapping):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def from_json(found: Mapping[str, Any]) -> dict[str, Estimate]:
    """The estimates from the output of `as_json`; other entries, such as the step, are ignored."""
    floats = lambda fields: {name: math.nan if value is None else value for name, value in fields.items()}
    return {name: Estimate(**floats(fields)) for name, fields in found.items() if isinstance(fields, dict)}
