"""Every bijection against every law. A new one joins by being listed in CASES."""

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.models.bijections import (
    ActNorm,
    Affine,
    Chain,
    Checkerboard,
    Continuous,
    Convolutional,
    Coupling,
    Dense,
    Elementwise,
    FactorOut,
    Field,
    Flattened,
    Inverse,
    Linear,
    MaskedAutoregressive,
    Permutation,
    Planar,
    Radial,
    RationalQuadraticSpline,
    Reverse,
    Scalar,
    Sigmoid,
    Softplus,
    Squeezed,
    Stack,
    Standardize,
    SumOfSigmoids,
    certify,
    glow,
    realnvp,
)
from gen_jax.models.bijections.coupling import move
from gen_jax.models.bijections.layer import Layer, unrolled
from gen_jax.models.flow import Flow, Normal
from gen_jax.optimizers import adamw, kernels

KEY = jax.random.key(0)
NET = partial(Dense, hidden=(16,), activation=jnp.tanh)  # smooth, so that Jacobians are those of one function
CONV = partial(Convolutional, width=4, blocks=1)
SPLINE = RationalQuadraticSpline(4)
MADE = partial(MaskedAutoregressive, hidden=(16,), activation=jnp.tanh)


@dataclass(frozen=True)
class Case:
    """A layer and the shape of its examples; `wide` is the layer for float64 where that is another."""

    layer: Any
    shape: tuple[int, ...] = (4,)
    context: int = 0
    spread: float = 0.2  # of what is added to fresh parameters, so that no layer is the identity
    wide: Any = None


CASES = {
    "affine coupling": Case(Coupling(network=NET)),
    "affine coupling, odd": Case(Coupling(network=NET), (5,), 3),
    "spline coupling": Case(Coupling(SPLINE, NET), (5,)),
    "spline coupling, context": Case(Coupling(SPLINE, NET), (4,), 2),
    "sigmoid coupling": Case(Coupling(SumOfSigmoids(3), NET), (3,)),
    "coupling of images": Case(Coupling(network=CONV), (4, 4, 2)),
    "checkerboard": Case(Checkerboard(CONV), (4, 4, 1), 2),
    "MAF": Case(MADE()),
    "MAF, context": Case(MADE(), (3,), 2),
    "MAF of one dimension": Case(MADE(), (1,)),
    "spline MAF": Case(MADE(SPLINE)),
    "IAF": Case(Inverse(MADE()), (4,), 2),
    "spline IAF": Case(Inverse(MADE(SPLINE))),
    "planar": Case(Planar(), (3,)),
    "planar, context": Case(Planar(), (3,), 2),
    "inverted planar": Case(Inverse(Planar()), (3,)),
    "radial": Case(Radial(), (3,), 2),
    "inverted radial": Case(Inverse(Radial()), (3,)),
    "actnorm": Case(ActNorm(), (3,)),
    "actnorm of images": Case(ActNorm(), (4, 4, 2)),
    "standardize": Case(Standardize(), (3,)),
    "linear": Case(Linear(), (5,)),
    "1x1 convolution": Case(Linear(), (2, 2, 3)),
    "reverse": Case(Reverse(), (3,)),
    "permutation": Case(Permutation(), (5,)),
    "sums of sigmoids": Case(Elementwise(), (3,)),
    "elementwise splines": Case(Elementwise(SPLINE), (3,)),
    "elementwise affine": Case(Elementwise(Affine()), (3,)),
    "tanh": Case(Scalar(distrax.Tanh(), (-1.0, 1.0)), (3,)),
    "softplus": Case(Softplus(), (3,)),
    "logit": Case(Sigmoid(), (3,)),
    "squeeze": Case(Squeezed(ActNorm()), (4, 4, 1)),
    "multi-scale split": Case(FactorOut(ActNorm()), (2, 2, 3)),
    "flattened": Case(Flattened(MADE()), (2, 2, 1)),
    "stack": Case(Stack(Chain([Coupling(network=NET), Permutation(), ActNorm()]), 3)),
    "glow": Case(glow(2, 2, CONV), (4, 4, 1), spread=0.02),
    "realnvp": Case(realnvp(1, CONV), (4, 4, 1), spread=0.05),
    "continuous": Case(Continuous(Field((8,)), tolerance=1e-6), (2,), 1, wide=Continuous(Field((8,)), tolerance=1e-12)),
}


def examples(case, n=6, key=KEY):
    x = jax.random.normal(key, (n, *case.shape))
    low, high = case.layer.support or (-np.inf, np.inf)
    if np.isfinite(high):
        return low + (high - low) * (0.1 + 0.8 * jax.nn.sigmoid(x))
    return jnp.exp(x) if np.isfinite(low) else x


def context_of(case, n=6):
    return jax.random.normal(jax.random.key(9), (n, case.context)) if case.context else None


@cache
def parameters(case):
    """Those of the case, neither fresh nor the identity's, as numpy arrays; and fresh ones."""

    @jax.jit
    def make():
        params = case.layer.init(KEY, examples(case, 64), context_of(case, 64))
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(1), max(len(leaves), 1))
        return tree.unflatten([a + case.spread * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys)]), params

    return jax.tree.map(np.asarray, make())


def widened(tree):
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), tree)


LONG = ("glow", "realnvp", "coupling of images", "checkerboard", "continuous")  # to compile
TWINS = ("spline MAF", "spline IAF", "sums of sigmoids", "sigmoid coupling", "stack")  # made of layers tested alone


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name in LONG[:2] + TWINS)) for name in CASES])
def any_case(request):
    return CASES[request.param]


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name in LONG + TWINS)) for name in CASES])
def case(request):
    return CASES[request.param]


def check_inverse(found, x, tolerance):
    z, log_det, back, log_det_back = found
    assert z.shape == x.shape and log_det.shape == (len(x),)
    assert z.dtype == log_det.dtype == back.dtype == x.dtype
    np.testing.assert_allclose(back, x, atol=tolerance * max(1, float(abs(x).max())))
    np.testing.assert_allclose(log_det_back, -log_det, atol=10 * tolerance * max(1, float(abs(log_det).max())))


def test_inverts_to_1e_5_in_float32_as_a_distrax_bijector(case):
    """With any leading axes; for vectors also a batch of one, and without a context under vmap."""
    (params, _), x, context = parameters(case), examples(case), context_of(case)

    @jax.jit
    def run(params, x, context):
        bijector = case.layer(params, context, len(case.shape))
        z, log_det = bijector.inverse_and_log_det(x)
        more = bijector.inverse_and_log_det(jnp.stack([x, x]))
        if len(case.shape) > 1:  # what follows is the same code for images, and takes long to compile
            return (z, log_det, *bijector.forward_and_log_det(z)), more, z[:1], log_det
        one = case.layer(params, None if context is None else context[:1]).inverse(x[:1])
        mapped = log_det if context is not None else jax.vmap(bijector.inverse_and_log_det)(x)[1]
        return (z, log_det, *bijector.forward_and_log_det(z)), more, one, mapped

    found, more, one, mapped = run(params, x, context)
    check_inverse(found, x, 1e-5)
    assert more[1].shape == (2, len(x))
    for other, expected in ((more[0][1], found[0]), (one, found[0][:1]), (mapped, found[1])):
        np.testing.assert_allclose(other, expected, atol=2e-4)


@pytest.mark.representatives("*coupling*", "MAF*", "linear", "1x1*", "permutation", "planar*")
def test_inverts_to_1e_10_in_float64_with_the_determinant_of_its_jacobian(any_case):
    case = any_case
    found = certify(case.layer, examples(case), context_of(case), parameters(case)[0], exact=case.wide)
    assert found.round_trip <= 1e-5 and found.round_trip_float64 <= 1e-10 and found.log_det <= 1e-6


@dataclass(frozen=True)
class Doubled(Layer):
    """x = 2 z, with one law broken at a time."""

    broken: str = ""
    triangular = True

    def init(self, key, x, context=None):
        return {}

    def inverse(self, params, x, context=None):
        z = x / 2 if self.broken != "mixed" else jnp.flip(x, axis=1) / 2
        log_det = jnp.full(len(x), -x.shape[1] * np.log(2.0), x.dtype)
        return z, log_det[:, None] if self.broken == "shape" else log_det + (self.broken == "determinant") * 0.1

    def forward(self, params, z, context=None):
        x = jnp.flip(2 * z, axis=1) if self.broken == "mixed" else 2 * z + (self.broken == "inverse") * 0.01
        log_det = jnp.full(len(z), z.shape[1] * np.log(2.0), z.dtype)
        if self.broken == "gradient":
            log_det = log_det + jnp.sqrt(0 * z.sum(axis=1))
        if self.broken == "type":
            x = x.astype(jnp.bfloat16)
        return x, log_det - (self.broken == "determinant") * 0.1 + (self.broken == "sign") * 0.1


@pytest.mark.parametrize(
    "broken, said",
    [
        ("shape", "must return values"),
        ("type", "makes bfloat16 of float32"),
        ("inverse", "does not undo inverse"),
        ("sign", "are not opposite"),
        ("determinant", "off that of the Jacobian"),
        ("mixed", "says that it is triangular"),
        ("gradient", "gradient is not finite"),
    ],
)
def test_certify_names_the_law_that_a_layer_breaks(broken, said):
    x = jax.random.normal(KEY, (3, 4))
    assert certify(Doubled(), x).params == 0
    with pytest.raises(ValueError, match=said):
        certify(Doubled(broken), x)


def test_every_layer_keeps_the_dtype_of_its_examples(any_case):
    """Where float64 is enabled, too: numbers of NumPy among those of JAX would make float64 of float32."""
    case, shapes = any_case, lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype)
    params, x, context = jax.tree.map(shapes, (parameters(case)[0], examples(case), context_of(case)))
    with jax.enable_x64(True):
        fresh = jax.eval_shape(case.layer.init, jax.random.key(0), x, context)
        for tree in (fresh, *(jax.eval_shape(f, params, x, context) for f in (case.layer.forward, case.layer.inverse))):
            assert {a.dtype for a in jax.tree.leaves(tree)} <= {jnp.dtype("float32"), jnp.dtype("int32")}


@pytest.mark.representatives("affine coupling", "spline coupling", "MAF", "linear", "1x1*", "planar*")
def test_gradients_are_finite_everywhere(case):
    """Of samples, and of densities at zero, at the edges of intervals and far outside; for fresh parameters too."""
    inside = {(-1.0, 1.0): [0.0, 0.9, -0.99], (0.0, 1.0): [0.0, 1.0, 0.5], Softplus.support: [1e-3, 1.0, 50.0]}
    values = inside.get(case.layer.support, [0.0, 4.0, -4.0, 40.0, -40.0])
    x = jnp.stack([jnp.full(case.shape, v) for v in values])
    context = context_of(case, len(x))
    total = lambda found: found[0].sum() + found[1].sum()

    @jax.jit
    def run(params):
        density = jax.grad(lambda params, x: total(case.layer.inverse(params, x, context)), argnums=(0, 1))
        sample = jax.grad(lambda params, z: total(case.layer.forward(params, z, context)), argnums=(0, 1))
        return density(params, x), sample(params, jax.random.normal(KEY, x.shape))

    for params in parameters(case):
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(run(params)))


@pytest.mark.representatives("affine coupling-*", "spline coupling-*", "MAF-*", "linear-*", "planar-*")
@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(n, size, marks=[pytest.mark.slow] * (n in TWINS + LONG))
        for n, c in CASES.items()
        if len(c.shape) == 1 and c.layer.support is None and not n.endswith("context")
        for size in (1, 2)
        if size == 2 or not ("coupling" in n or n == "stack")
    ],
)
def test_densities_integrate_to_one(name, size):
    case = replace(CASES[name], shape=(size,), context=0)
    layer, (params, _) = case.layer, parameters(case)
    line = np.linspace(-12, 12, 20_001 if size == 1 else 601, dtype=np.float32)
    points = line[:, None] if size == 1 else np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    z, log_det = jax.jit(lambda x: layer.inverse(params, x))(points)
    log_prob = log_det - 0.5 * jnp.sum(z**2, axis=1) - 0.5 * size * np.log(2 * np.pi)
    mass = np.exp(np.asarray(log_prob, np.float64)).sum() * (line[1] - line[0]) ** size
    assert mass == pytest.approx(1, abs=3e-3)


def test_masks_let_nothing_through():
    for layer in (MADE(), MADE(SPLINE), Stack(MADE(), 2)):
        case = Case(layer, (5,))
        (params, _), x = parameters(case), examples(case)[0]
        jacobian = np.asarray(jax.jit(jax.jacrev(lambda x: layer.inverse(params, x[None])[0][0]))(x))
        assert np.all(jacobian[np.triu_indices(5, 1)] == 0)
        assert np.all(np.diagonal(jacobian) != 0) and np.count_nonzero(np.tril(jacobian, -1)) == 10
        assert layer.triangular


@pytest.mark.representatives("MAF", "spline MAF", "elementwise*")
@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.layer.triangular and not c.context])
def test_triangular_layers_are(name):
    case = CASES[name]
    (params, _), x = parameters(case), examples(case)[:1]
    flat = lambda f: lambda v: f(params, v.reshape(x.shape))[0].reshape(-1)

    @jax.jit
    def run(x):
        z = case.layer.inverse(params, x)[0]
        return [jax.jacrev(flat(f))(a.reshape(-1)) for f, a in ((case.layer.inverse, x), (case.layer.forward, z))]

    for jacobian in run(x):
        assert np.all(np.asarray(jacobian)[np.triu_indices(x.size, 1)] == 0)


def test_spline_is_that_of_distrax():
    spline = RationalQuadraticSpline(6, 3.0, min_bin=1e-2, min_slope=1e-2)
    raw = jax.random.normal(KEY, (50, spline.outputs))
    x = jnp.linspace(-4, 4, 50)
    y, log_slope = spline.forward(list(raw.T), x)
    full = jnp.concatenate([raw[:, :12], jnp.zeros((50, 1)), raw[:, 12:], jnp.zeros((50, 1))], axis=1)
    reference = distrax.RationalQuadraticSpline(
        full, -3.0, 3.0, boundary_slopes="identity", min_bin_size=1e-2 * 6, min_knot_slope=1e-2
    )
    expected, expected_slope = reference.forward_and_log_det(x)
    np.testing.assert_allclose(y, expected, atol=2e-5)
    np.testing.assert_allclose(log_slope, expected_slope, atol=2e-4)


def test_affine_coupling_is_that_of_distrax():
    layer = Coupling(network=NET)
    (params, _), x = parameters(Case(layer)), examples(Case(layer))
    network = NET(4)

    def bijector(raw):
        return distrax.ScalarAffine(shift=raw[..., 2:], log_scale=3 * jnp.tanh(raw[..., :2] / 3))

    reference = distrax.SplitCoupling(2, 1, lambda kept: network.apply({"params": params}, kept), bijector)
    z, log_det = layer.inverse(params, x)
    expected, expected_det = reference.forward_and_log_det(x)
    np.testing.assert_allclose(z, expected, rtol=1e-5)
    np.testing.assert_allclose(log_det, expected_det, rtol=1e-5)


def test_actnorm_begins_with_unit_noise():
    x = 5 + 3 * jax.random.normal(KEY, (1000, 4))
    z, _ = ActNorm().inverse(ActNorm().init(KEY, x), x)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-2)
    deep = Stack(Chain([Coupling(network=NET), ActNorm()]), 3)
    np.testing.assert_allclose(jax.jit(lambda x: deep.inverse(deep.init(KEY, x), x)[0])(x).std(axis=0), 1, atol=1e-2)


def test_standardize_is_not_learned():
    x = examples(Case(ActNorm()), 32)
    grads = jax.grad(lambda p: Standardize().inverse(p, x)[0].sum())(Standardize().init(KEY, x))
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(grads))
    params = Standardize().init(KEY, x)
    tx = adamw(0.1, 10, weight_decay=0.1, decayed=kernels)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert all(np.all(np.asarray(u) == 0) for u in jax.tree.leaves(updates))


def test_data_of_any_units_become_unit_noise():
    for scale in (1e-6, 1.0, 1e6):
        x = scale * jax.random.normal(KEY, (1000, 2))
        np.testing.assert_allclose(Standardize().inverse(Standardize().init(KEY, x), x)[0].std(axis=0), 1, atol=1e-2)
    constant = jnp.full((10, 2), 3.0)
    np.testing.assert_allclose(Standardize().inverse(Standardize().init(KEY, constant), constant)[0], 0)


def test_linear_begins_as_a_rotation():
    for size in (2, 16, 64):
        params = Linear().init(KEY, jnp.zeros((1, size)))
        np.testing.assert_allclose(jnp.linalg.cond(Linear().inverse(params, jnp.eye(size))[0]), 1, atol=1e-3)
    assert "triangular_solve" not in str(jax.make_jaxpr(partial(Linear().forward, params))(jnp.eye(64)))


@pytest.mark.slow
def test_hutchinson_is_right_on_average():
    exact = Continuous(Field((8,)), tolerance=1e-5)
    case = Case(exact, (3,))
    (params, _), x = parameters(case), examples(case, 4)
    expected = jax.jit(exact.inverse)(params, x)[1]
    estimate = jax.jit(replace(exact, probes=2).inverse)
    found = [estimate(params, x + 1e-4 * i)[1] for i in range(200)]  # other batches, other probes
    assert np.std(found, axis=0).min() > 0
    np.testing.assert_allclose(np.mean(found, axis=0), expected, atol=4 * np.std(found, axis=0).max() / np.sqrt(200))


def test_long_sequences_are_solved_one_value_after_the_other():
    """x_i = z_i - sum of x before i: other values than the one to be solved for would grow to infinity."""
    layer = MaskedAutoregressive(hidden=())
    size = 256
    params = jax.tree.map(np.array, layer.init(KEY, jnp.zeros((1, size))))
    params["outputs"]["kernel"][:, size:] = 1.0
    z = jax.random.normal(KEY, (2, size))
    x, _ = jax.jit(layer.forward)(params, z)
    np.testing.assert_allclose(layer.inverse(params, x)[0], z, atol=1e-3)


def test_planar_flows_stay_invertible_at_their_limit():
    for u, w in ((-4.0, 4.0), (-5.0, 5.0), (-20.0, 20.0)):
        params = {"raw": jnp.array([u, 0.3, w, 0.2, 0.0])}
        z = jnp.array([[0.0, 0.0], [1e-3, 0.0], [0.5, -1.0]])
        x, log_det = Planar().forward(params, z)
        back, log_det_back = Planar().inverse(params, x)
        np.testing.assert_allclose(back, z, atol=1e-4)
        np.testing.assert_allclose(log_det_back, -log_det, atol=1e-2)


def test_repeated_permutations_leave_no_value_behind():
    for size in (2, 3, 10, 64, 128):
        order = np.asarray(Permutation().forward({}, jnp.arange(size)[None])[0][0])
        at, seen = 0, set()
        for _ in range(size):
            at = order[at]
            seen.add(int(at))
        assert len(seen) == size


def test_slopes_at_knots_are_those_of_autodiff():
    spline = RationalQuadraticSpline(8)
    raw = [jnp.zeros(())] * spline.outputs
    for f in (spline.forward, spline.inverse):
        slopes = jax.jit(jax.vmap(jax.grad(lambda x, f=f: f(raw, x)[0])))(jnp.array([-2.0, 0.0, 1.0]))
        np.testing.assert_allclose(slopes, 1, atol=1e-5)


def test_a_solver_that_gives_up_says_so_with_nan():
    layer = Continuous(Field((8,)), tolerance=1e-7, max_steps=2)
    case = Case(layer, (2,), spread=2.0)
    z, _ = jax.jit(layer.inverse)(parameters(case)[0], examples(case))
    assert np.all(np.isnan(z))


def test_depth_costs_no_compile_time():
    """The program of 64 layers is as long as that of 4."""

    def program(depth):
        layer = Stack(Chain([Coupling(network=NET), Reverse()]), depth)
        params = layer.init(KEY, jnp.zeros((2, 4)))
        return len(str(jax.make_jaxpr(jax.grad(lambda p: layer.inverse(p, jnp.zeros((2, 4)))[1].sum()))(params)))

    assert program(64) < 1.1 * program(4)


def test_unrolled_layers_are_the_same_map():
    layer = Chain([Stack(Chain([Coupling(network=NET), Reverse()]), 3), ActNorm()])
    case = Case(layer)
    (params, _), z = parameters(case), examples(case)
    expected, _ = layer.forward(params, z)
    steps = unrolled(layer, params)
    assert len(steps) == 7
    for part, its in steps:
        z, _ = part.forward(its, z)
    np.testing.assert_allclose(z, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RationalQuadraticSpline(1), "at least 2 bins"),
        (lambda: RationalQuadraticSpline(200), "below 1"),
        (lambda: RationalQuadraticSpline(8, min_slope=1.5), "min_slope"),
        (lambda: Affine(0.0), "bound"),
        (lambda: glow(0, 2, CONV), "at least one level"),
        (lambda: Continuous(probes=-1), "probes"),
        (lambda: Inverse(Softplus()), "the other way round"),
        (lambda: Stack(Sigmoid(), 2), "cannot be repeated"),
        (lambda: Chain([Sigmoid(), Reverse()]), "must be the last layer"),
        (lambda: Coupling().init(KEY, jnp.zeros((2, 4, 4, 2)), jnp.zeros((2, 1))), "take Convolutional"),
        (lambda: SumOfSigmoids(0), "terms"),
        (lambda: Sigmoid(0.5), "alpha"),
        (lambda: Stack(Reverse(), 0), "depth"),
        (lambda: Chain([distrax.Tanh()]), "is none"),
        (lambda: Coupling().init(KEY, jnp.zeros((2, 1))), "at least 2 dimensions"),
        (lambda: MADE().init(KEY, jnp.zeros((2, 4, 4, 1))), "put it in Flattened"),
        (lambda: Planar().init(KEY, jnp.zeros((2, 4, 4, 1))), "takes vectors"),
        (lambda: Continuous().init(KEY, jnp.zeros((2, 4, 4, 1))), "takes vectors"),
        (lambda: Checkerboard(CONV).init(KEY, jnp.zeros((2, 4))), "needs images"),
        (lambda: Squeezed(ActNorm()).init(KEY, jnp.zeros((2, 5, 4, 1))), "must be even"),
        (lambda: Flow(Normal((2,)), [nn.Dense(3)]), "is none"),
    ],
)
def test_what_cannot_be_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere values keep their order")
def test_short_rows_are_moved_as_long_ones(monkeypatch):
    """On one CPU values of few dimensions are moved with the examples last: the same map, of NumPy's arrays too."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    spline = RationalQuadraticSpline(4, 3.0)
    raw = np.random.default_rng(0).normal(size=(3, 20, spline.outputs * 4)).astype(np.float32)
    x = np.random.default_rng(1).normal(size=(3, 20, 4)).astype(np.float32)
    split = [jnp.asarray(part) for part in np.split(raw, spline.outputs, axis=-1)]
    for direction in (spline.forward, spline.inverse):
        expected = direction(split, jnp.asarray(x))
        moved = lambda raw, x: move(direction, spline.outputs, raw, x)
        for found in (moved(raw, x), jax.jit(moved)(raw, x), jax.jit(jax.vmap(moved))(raw, x)):
            np.testing.assert_allclose(np.stack(found), np.stack(expected), rtol=1e-5, atol=1e-5)
        total = lambda f: lambda raw, x: sum(jnp.sum(part**2) for part in f(raw, x))
        slow = total(lambda raw, x: direction(jnp.split(raw, spline.outputs, axis=-1), x))
        fast = total(lambda raw, x: jax.lax.scan(lambda c, _: (c, moved(raw, x)), 0, length=1)[1])
        for a, b in zip(*(jax.jit(jax.grad(f, (0, 1)))(raw, x) for f in (fast, slow))):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
