"""Simulated raters of known sensitivity, to try out a design and to check its analysis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gen_jax.applications.study.protocol import Protocol, Stimulus
from gen_jax.applications.study.store import Store, Trial

__all__ = ["SimulatedRater", "simulate"]

WORST = 6.0  # how far scrambled stimuli are from real ones


@dataclass(frozen=True)
class SimulatedRater:
    """Judges by a noisy impression of how far a stimulus is from real ones.

    distances: of each source from real stimuli, in standard deviations of the impression: d'. lapse: share of guesses.
    A detection study is answered with a criterion halfway to the mean of the models, a comparison by logistic noise on
    the difference, ratings on a scale whose ends are those of the largest distance, with an offset of the rater.
    """

    protocol: Protocol
    stimuli: Mapping[str, Stimulus]
    distances: Sequence[float]
    lapse: float
    rng: np.random.Generator
    offset: float = 0.0

    def choose(self, trial: Trial) -> int:
        """The choice for a trial."""
        if self.rng.random() < self.lapse:
            return int(self.rng.integers(self.protocol.choices))
        far = [self._distance(self.stimuli[id]) for id in trial.stimuli]
        if self.protocol.kind == "pairs":
            return self._compare(far[1] - far[0])
        if self.protocol.kind == "rating":
            return self._rate(far[0])
        if self.protocol.kind == "match":  # models far from real ones are harder to recognize
            sensitivity = WORST if trial.role == "catch" else max(0.0, 3.0 - far[0])
            evidence = self.rng.normal() + (sensitivity if trial.expected else 0.0)
            return int(evidence > sensitivity / 2)
        models = [d for d, source in zip(self.distances, self.protocol.sources) if not source.real]
        return int(self.rng.normal() + far[0] > np.mean(models) / 2 + self.offset)

    def _distance(self, one: Stimulus) -> float:
        return WORST if one.role == "catch" else self.distances[one.source]

    def _compare(self, difference: float) -> int:
        """0 for the first, 1 for the second, 2 for a tie, by the model of Davidson 1970 with half as many ties."""
        weights = [math.exp(difference / 2), math.exp(-difference / 2), 0.5][: self.protocol.choices]
        return int(self.rng.choice(len(weights), p=np.array(weights) / sum(weights)))

    def _rate(self, distance: float) -> int:
        top, most = self.protocol.choices - 1, max(*self.distances, 1e-9)
        value = top * (1 - 0.7 * min(distance / most, 1.5)) + self.offset + 0.7 * self.rng.normal()
        return int(np.clip(round(value), 0, top))


def simulate(store: Store, raters: int, ability: Sequence[float], lapse: float = 0.0, seed: int = 0) -> int:
    """Answers of so many raters, stored as people's are; returns their number.

    ability: d' between each model and real stimuli. Raters differ in their criterion by a standard deviation of .2.
    """
    models, answers = iter(ability), 0
    distances = [0.0 if source.real else next(models) for source in store.protocol.sources]
    for number in range(raters):
        rng = np.random.default_rng([seed, number])
        rater = SimulatedRater(store.protocol, store.stimuli, distances, lapse, rng, 0.2 * rng.normal())
        name, _ = store.admit(simulated=True)
        while (trial := store.current(name)) is not None:
            choice = rater.choose(trial)
            store.answer(name, trial.id, choice, float(rng.lognormal(7.0, 0.4)), None, False)
            answers += 1
    return answers
