"""What the laws of `test_contract.py` are tried on: every config shrunk by `smoke=True`, and representatives of them.

`make test` holds all laws for a set of configs that covers each family with its combinators, with and without a
condition and batch statistics, which is computed from the configs themselves; the others are traced. `make test-all`
holds all laws for all configs.
"""

import ast
import dataclasses
from functools import cached_property
from pathlib import Path

import jax

from gen_jax.configs import load
from gen_jax.core import Conditional, ExpectationMaximization, ImageTranslator, Seq2Seq, Trainable
from gen_jax.data import load as load_data
from gen_jax.loop import Program, program
from gen_jax.models.common import normalization
from gen_jax.models.gan.progressive import ProgressiveGAN
from gen_jax.sharding import Layout

CONFIGS = sorted(Path(__file__).parent.parent.glob("configs/*/*.py"))
COMBINATORS = {
    "closed_form",
    "em",
    "stepwise_em",
    "descent",
    "with_ema",
    "best_restart",
    "until_converged",
    "population",
    "staged",
}


def kind_of(path: Path) -> tuple:
    """(family, combinators, conditional, batch statistics)."""
    model = load(path, {"smoke": True}).build().model
    named = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
    conditional = isinstance(model, Conditional) and model.conditioning is not None
    return path.parent.name, tuple(sorted(named & COMBINATORS)), conditional, _holds_batch_norm(model)


def at_start(model):
    """The model that the first steps train: of a growing one, its first stage."""
    return model.stages()[0] if isinstance(model, ProgressiveGAN) else model


def _holds_batch_norm(value) -> bool:
    """Whether batch normalization is anywhere in a tree of dataclasses."""
    if value is normalization.batch:
        return True
    if isinstance(value, (tuple, list)):
        return any(_holds_batch_norm(one) for one in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.name not in ("parent", "name")]
        return any(_holds_batch_norm(value.__dict__.get(name)) for name in fields)
    return False


def without_dropout(value):
    """A tree of dataclasses with every dropout at 0."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    names = [field.name for field in dataclasses.fields(value) if field.init and field.name not in ("parent", "name")]
    found = {name: 0.0 if name == "dropout" else without_dropout(value.__dict__.get(name)) for name in names}
    return dataclasses.replace(value, **found)


QUICK = {
    "vae_digits",
    "realnvp_moons",
    "cgan_digits",
    "hmm_gaussian",
    "gpt_tales",
    "numbers",
    "pix2pix_outlines",
    "cyclegan_twins",
}  # chosen before others that cover as much


def representatives() -> set[Path]:
    """A small set of configs that covers, in every family, each combinator, with and without condition, and with and
    without batch statistics: greedily, the config that adds most; the main ones and small data first."""
    features = {}
    for path in CONFIGS:
        family, combinators, conditional, batch_statistics = kind_of(path)
        own = {*combinators, ("conditional", conditional), ("batch statistics", batch_statistics)}
        features[path] = {(family, feature) for feature in own}
    left, chosen = set().union(*features.values()), set()
    rank = lambda path: (-len(features[path] & left), path.stem not in QUICK, "mnist" in path.stem, path.stem)
    while left:
        best = min(features, key=rank)
        chosen.add(best)
        left -= features[best]
    return chosen


class Case:
    """A shrunken experiment, its data on the device and its program, which is compiled once for all laws."""

    def __init__(self, path: Path):
        self.path = path
        self.experiment = load(path, {"smoke": True}).build()
        self.model, self.algorithm = self.experiment.model, self.experiment.algorithm
        data = self.experiment.data
        self.data = load_data(data) if isinstance(data, str) else data
        self.source = self.experiment.source(self.data)
        self.trained_on = self.source.batch_at(0)
        windows = self.experiment.windows
        self.whole = windows is not None and windows.whole  # a stream of tokens is one example
        self.batch = dict(self.split.head(16)) if self.whole else self.trained_on
        # players may move only on every n-th step
        objectives = self.model.objectives if isinstance(self.model, Trainable) else ()
        self.cycle = max([1, *(objective.every for objective in objectives)])

    @cached_property
    def by_em(self) -> bool:
        """Whether a State keeps sufficient statistics and nothing else of training, as that of EM does."""
        if not isinstance(self.model, ExpectationMaximization):
            return False
        shapes = self.program.shapes
        statistics = jax.eval_shape(self.model.e_step, shapes, self.trained_on)[0]
        return jax.tree.structure(statistics) == jax.tree.structure(shapes.opt)

    @cached_property
    def climbs(self) -> bool:
        """Whether its only measure of progress is a likelihood or a posterior."""
        reported = self.program.zeros()
        return "loss" not in reported and bool({"log_likelihood", "log_posterior"} & set(reported))

    @cached_property
    def program(self) -> Program:
        return program(self.algorithm, self.source)

    @cached_property
    def split(self):
        return self.experiment.split(self.data, "test")

    @cached_property
    def first(self):
        """The State after one step. Runs reuse the memory of the State they are given: see `start`."""
        return self.program.run(1)

    @property
    def start(self):
        return jax.tree.map(jax.numpy.copy, self.first)

    @property
    def translates(self) -> bool:
        return isinstance(self.model, ImageTranslator)

    @property
    def drawn(self) -> str:
        """The entry that samples hold anew."""
        return "y" if isinstance(self.model, (Seq2Seq, ImageTranslator)) else "x"

    @property
    def drawn_shape(self) -> tuple[int, ...]:
        """The shape of one example of that entry."""
        if self.translates:
            return self.trained_on["y"].shape[1:]
        return self.split.head(1)[self.drawn].shape[1:]

    @property
    def condition(self):
        """The conditioning inputs of seven examples, None for an unconditional model."""
        if isinstance(self.model, Seq2Seq):
            return {name: self.split.head(7)[name] for name in ("x", "length")}
        if self.translates:
            return {"x": self.split.head(7)["x"]}
        conditional = isinstance(self.model, Conditional) and self.model.conditioning is not None
        return {self.model.conditioning.entry: self.batch[self.model.conditioning.entry][:7]} if conditional else None

    def run(self, steps, state=None, **options):
        return self.program.run(steps, state=state, **options)

    def divided(self, devices: int) -> Program:
        return program(self.algorithm, self.source, layout=Layout(data=devices))
