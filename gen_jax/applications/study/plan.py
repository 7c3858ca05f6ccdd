"""The trials of a rater: which stimuli, in which order, on which side; drawn by the server and never sent ahead."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gen_jax.applications.study.protocol import Protocol, Stimulus

__all__ = ["Planned", "draw_trials"]


@dataclass(frozen=True)
class Planned:
    """One trial. stimuli: one, or of pairs the left and the right one; expected: the choice that is right, if any.

    given: the stimulus whose description is shown; another one than that judged where they should not match.
    """

    role: Literal["main", "practice", "catch"]
    stimuli: tuple[str, ...]
    given: str = ""
    expected: int | None = None


class _Pools:
    """Stimuli by source and role; the least shown ones are drawn first, none of them twice for one rater."""

    def __init__(self, stimuli: Mapping[str, Stimulus], shown: Mapping[str, int], rng: np.random.Generator):
        self.shown, self.rng = Counter(shown), rng
        self.pools: dict[tuple[int, str], list[Stimulus]] = {}
        for one in stimuli.values():
            self.pools.setdefault((one.source, one.role), []).append(one)

    def draw(self, source: int, role: str, given: str = "") -> Stimulus:
        pool = self.pools[source, role]
        pool = [one for one in pool if one.description == given] or pool if given else pool
        order = self.rng.permutation(len(pool))
        chosen = pool[min(order, key=lambda i: self.shown[pool[i].id])]
        self.shown[chosen.id] += 1_000_000  # taken by this rater
        return chosen


def draw_trials(
    protocol: Protocol, stimuli: Mapping[str, Stimulus], shown: Mapping[str, int], rng: np.random.Generator
) -> list[Planned]:
    """Trials of one rater: practice, then main trials in random order with catch trials between them.

    shown: how often each stimulus was given to the raters before.
    """
    pools = _Pools(stimuli, shown, rng)
    makers = {"turing": _single, "pairs": _pairs, "rating": _single, "match": _matches}
    make = makers[protocol.kind]
    practice = make(protocol, pools, "practice", protocol.practice)
    main = make(protocol, pools, "main", protocol.trials)
    rng.shuffle(main)
    places = sorted(rng.permutation(np.arange(1, len(main) + 1))[: protocol.catch].tolist(), reverse=True)
    for place in places:
        main.insert(place, _catch(protocol, pools))
    return practice + main


def _single(protocol: Protocol, pools: _Pools, role: str, n: int) -> list[Planned]:
    """One stimulus each: half of them real in a Turing test, else of all sources alike."""
    real = [i for i, source in enumerate(protocol.sources) if source.real]
    made = [i for i, source in enumerate(protocol.sources) if not source.real]
    if protocol.kind == "turing":
        chosen = _evenly(made, n // 2, pools.rng) + _evenly(real, n - n // 2, pools.rng)
    else:
        chosen = _evenly([*real, *made], n, pools.rng)
    pools.rng.shuffle(chosen)
    truth = lambda i: int(not protocol.sources[i].real) if protocol.kind == "turing" else None
    drawn = [(pools.draw(i, role), truth(i)) for i in chosen]
    return [Planned(role, (one.id,), one.id if one.description else "", expected) for one, expected in drawn]


def _matches(protocol: Protocol, pools: _Pools, role: str, n: int) -> list[Planned]:
    """One stimulus each with its own description, or in half of the trials that of another one."""
    chosen = _evenly(list(range(len(protocol.sources))), n, pools.rng)
    right = _evenly([True, False], n, pools.rng)
    pools.rng.shuffle(right)
    trials = []
    for source, matches in zip(chosen, right):
        judged = pools.draw(source, role)
        others = [one for one in pools.pools[source, role] if one.description != judged.description]
        given = judged if matches or not others else others[pools.rng.integers(len(others))]
        trials.append(Planned(role, (judged.id,), given.id, int(given is not judged)))
    return trials


def _pairs(protocol: Protocol, pools: _Pools, role: str, n: int) -> list[Planned]:
    """Two stimuli of different sources with the same description, if they have one, on random sides.

    Practice is of a real and a scrambled one, as there is a right answer.
    """
    if role == "practice":
        return [_catch(protocol, pools, "practice") for _ in range(n)]
    trials = []
    for first, second in _pairings(protocol.compared, n, pools.rng):
        one = pools.draw(first, role)
        other, given = pools.draw(second, role, one.description), one.id if one.description else ""
        expected = {(True, False): 0, (False, True): 1}.get(
            (protocol.sources[first].real, protocol.sources[second].real)
        )
        if pools.rng.random() < 0.5:
            one, other, expected = other, one, None if expected is None else 1 - expected
        trials.append(Planned(role, (one.id, other.id), given, expected))
    return trials


def _pairings(sources: Sequence[int], n: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """n pairs of sources: each as often as the others or once more, and so each source, as far as that can be."""
    pairs, chosen, used = list(itertools.combinations(sources, 2)), Counter(), Counter()
    for _ in range(n):
        order = [pairs[i] for i in rng.permutation(len(pairs))]
        pair = min(order, key=lambda one: (chosen[one], max(used[one[0]], used[one[1]]), used[one[0]] + used[one[1]]))
        chosen[pair] += 1
        used.update(pair)
    return list(chosen.elements())


def _catch(protocol: Protocol, pools: _Pools, role: Literal["practice", "catch"] = "catch") -> Planned:
    """A trial with a scrambled stimulus, whose answer is obvious."""
    real = next(i for i, source in enumerate(protocol.sources) if source.real)
    scrambled = pools.draw(real, "catch")
    if protocol.kind == "pairs":
        one = pools.draw(real, "practice")
        sides = [(one.id, scrambled.id), (scrambled.id, one.id)]
        expected = int(pools.rng.integers(2))
        return Planned(role, sides[expected], one.id if one.description else "", expected)
    given = scrambled.id if scrambled.description else ""
    return Planned(role, (scrambled.id,), given, 0 if protocol.kind == "rating" else 1)


def _evenly(values: Sequence, n: int, rng: np.random.Generator) -> list:
    """n of the values, each as often as the others or once more, in turns of random order."""
    if not values:
        return []
    turns = [[values[i] for i in rng.permutation(len(values))] for _ in range(-(-n // len(values)))]
    return list(itertools.chain(*turns))[:n]
