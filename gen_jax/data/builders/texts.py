"""Embedded texts, made by rules: tales from a grammar, and numbers in words with their digits."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["TEXTS", "numbers", "tales"]

_PEOPLE = {"Ada": "she", "Bruno": "he", "Clara": "she", "Emil": "he", "Fatima": "she", "Goran": "he", "Hana": "she"}
_PEOPLE |= {"Ivo": "he", "Lena": "she", "Milan": "he", "Nora": "she", "Omar": "he", "Petra": "she", "Samir": "he"}
_JOBS = ["baker", "carpenter", "clockmaker", "farmer", "fisher", "gardener", "miller", "sailor", "shepherd", "weaver"]
_PLACES = ["by the harbor", "at the edge of the forest", "in the old mill", "on the hill", "behind the market square"]
_PLACES += ["near the stone bridge", "beside the lake", "in a narrow street"]
_THINGS = ["a silver key", "an iron bell", "a blue lantern", "a wooden flute", "a torn map", "a glass bottle"]
_THINGS += ["a small compass", "an empty purse", "a golden thread", "a heavy book", "a red scarf", "an old letter"]
_SPOTS = ["under the floor", "in the well", "between two stones", "at the bottom of a chest", "inside a hollow tree"]
_SPOTS += ["on the windowsill", "in the pocket of a coat", "behind the stove"]
_WEATHER = ["rain fell", "snow fell", "the wind blew", "the sun shone", "fog lay over the roofs", "a storm came up"]
_DAYS = ["all day", "until evening", "for seven nights", "from dawn to dusk", "as never before"]
_MOODS = ["glad", "sorry", "tired", "proud", "afraid", "curious", "silent", "hungry"]
_ANIMALS = ["crow", "cat", "donkey", "fox", "goat", "owl", "dog", "hare"]
_VERBS = ["carried", "showed", "sold", "lent", "returned", "promised"]
_ENDINGS = ["and nobody spoke of it again", "and so it has remained to this day", "and the two became friends for life"]
_ENDINGS += ["and the door was never locked again", "and every year they told the story once more"]
_COUNTS = ["two", "three", "four", "five", "six", "seven"]


def tales(documents: int = 700) -> dict[str, list[str]]:
    """Short tales in which names, pronouns, things and numbers have to agree over several sentences."""
    rng = random.Random("tales")
    return {"": list(dict.fromkeys(_tale(rng) for _ in range(documents)))}


def _tale(rng: random.Random) -> str:
    one, other = rng.sample(sorted(_PEOPLE), 2)
    she, animal, thing = _PEOPLE[one], rng.choice(_ANIMALS), rng.choice(_THINGS)
    her = {"she": "her", "he": "his"}
    job, job2 = rng.sample(_JOBS, 2)
    bare = thing.split(" ", 1)[1]
    said = rng.choice(["asked", "said", "whispered", "cried"])
    article = "an" if animal == "owl" else "a"
    lines = [
        f"{one} the {job} lived {rng.choice(_PLACES)} with {article} {animal} "
        f"that could count to {rng.choice(_COUNTS)}.",
        f"One {rng.choice(['morning', 'winter', 'spring', 'night'])} {rng.choice(_WEATHER)} {rng.choice(_DAYS)}, "
        f"and {she} found {thing} {rng.choice(_SPOTS)}.",
        f'"Whose {bare} is this?" {said} {one}. "It is not mine, and it is not {her[she]}s," '
        f"the {animal} {rng.choice(['answered', 'replied'])}."
        if she == "she"
        else f'"Whose {bare} is this?" {said} {one}. "Ask the {job2}," the {animal} answered.',
    ]
    for _ in range(rng.randint(1, 4)):
        lines.append(_event(rng, one, other, bare, animal, job2))
    lines.append(
        f"{other} the {job2} was {rng.choice(_MOODS)}, {one} was {rng.choice(_MOODS)}, {rng.choice(_ENDINGS)}."
    )
    return " ".join(lines) + "\n"


def _event(rng: random.Random, one: str, other: str, bare: str, animal: str, job: str) -> str:
    they = _PEOPLE[other]
    number, mood, spot = rng.choice(_COUNTS), rng.choice(_MOODS), rng.choice(_SPOTS)
    until, weather = rng.choice(["the snow melts", "the moon is full", "I return"]), rng.choice(_WEATHER)
    return rng.choice(
        [
            f"So {one} {rng.choice(_VERBS)} the {bare} to {other} the {job}, who lived {rng.choice(_PLACES)}.",
            f"{other} looked at the {bare} for {number} days, and after {number} days {they} was still {mood}.",
            f'"Keep the {bare}," said {other}, "until {until}."',
            f"The {animal} counted to {number} and hid the {bare} {spot}.",
            f"When {weather} {rng.choice(_DAYS)}, {one} and {other} went to look for the {bare} {spot}.",
        ]
    )


_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
_ONES += "seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def numbers(pairs: int = 12_000) -> dict[str, list[tuple[str, str]]]:
    """Numbers below a million in English words, and in digits: all below 1,000 are among them."""
    rng = random.Random("numbers")
    chosen = list(range(1000)) + rng.sample(range(1000, 1_000_000), pairs - 1000)
    return {"": [(_words(n), str(n)) for n in chosen]}


def _words(n: int) -> str:
    if n >= 1000:
        rest = f" {_words(n % 1000)}" if n % 1000 else ""
        return f"{_words(n // 1000)} thousand{rest}"
    if n >= 100:
        rest = f" and {_words(n % 100)}" if n % 100 else ""
        return f"{_ONES[n // 100]} hundred{rest}"
    if n < 20:
        return _ONES[n]
    return _TENS[n // 10 - 2] + (f" {_ONES[n % 10]}" if n % 10 else "")


TEXTS: Mapping[str, tuple[str, Callable[[], dict[str, list[Any]]], str]] = {
    "tales": ("tokens", tales, "700 short tales from a grammar, 400 kB: a text for language models"),
    "numbers": ("pairs", numbers, "12,000 numbers in English words and in digits: text-to-text"),
}
