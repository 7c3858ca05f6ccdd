"""Image translation against closed forms: shapes, receptive fields, parameter counts, pools, losses."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax.algorithms import descent
from gen_jax.core import State
from gen_jax.data.source import Resident
from gen_jax.loop import fit
from gen_jax.models.common.convolutions import Conv
from gen_jax.models.common.image_to_image import ResNetTranslator, UNet, blurred_down, blurred_up
from gen_jax.models.common.networks import ConvEncoder
from gen_jax.models.common.normalization import batch, instance_norm
from gen_jax.models.gan import PatchDiscriminator, least_squares, receptive_field
from gen_jax.models.gan.regularizers import DISCRIMINATOR, GENERATOR
from gen_jax.models.translation import CUT, CycleGAN, Pix2Pix
from gen_jax.models.translation.pool import empty_pool, exchange
from gen_jax.restarts import member, population

PLAIN = instance_norm(affine=False)


def shapes(module, *shape):
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape)))


def count(tree):
    return sum(a.size for a in jax.tree.leaves(tree["params"]))


def images(n=4, size=(16, 16), channels=1, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (n, *size, channels)), jnp.float32)


def test_networks_have_the_parameters_of_their_papers():
    """Counts of Isola et al. 2017 and Zhu et al. 2017 at 256x256 and 128x128, without biases that a norm removes."""
    assert count(shapes(UNet(), 256, 256, 3)) == 54_414_531
    assert count(shapes(UNet(depth=7), 128, 128, 3)) == 41_829_571
    assert count(shapes(PatchDiscriminator(), 256, 256, 6)) == 2_768_705
    removed = 64 + 128 + 256 + 9 * 2 * 256 + 128 + 64
    assert count(shapes(ResNetTranslator(), 256, 256, 3)) == 11_378_179 - removed
    assert count(shapes(PatchDiscriminator(norm=PLAIN), 256, 256, 3)) == 2_764_737 - (128 + 256 + 512)


def test_a_patch_is_as_large_as_what_moves_its_logit():
    assert [receptive_field(n) for n in range(6)] == [1, 16, 34, 70, 142, 286]
    out = jax.eval_shape(PatchDiscriminator().init_with_output, jax.random.key(0), jnp.zeros((1, 256, 256, 3)))[0]
    assert out.shape == (1, 30, 30, 1)
    network = PatchDiscriminator(4, 2)
    x = images(size=(64, 64))
    variables = network.init(jax.random.key(0), x)

    def middle(x):  # one logit far from the borders; statistics are constants
        logits = network.apply(variables, x)
        return logits[0, 7, 7, 0]

    moved = np.asarray(jnp.abs(jax.grad(middle)(x))[0, :, :, 0] > 0)
    rows, columns = np.flatnonzero(moved.any(axis=1)), np.flatnonzero(moved.any(axis=0))
    assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == receptive_field(2)
    with pytest.raises(ValueError, match="70x70 pixels do not fit"):
        shapes(PatchDiscriminator(), 64, 64, 3)


@pytest.mark.representatives("odd-*")
@pytest.mark.parametrize("network", [UNet(2, 4, 3), ResNetTranslator(2, 4, 1)], ids=["unet", "resnet"])
@pytest.mark.parametrize("size", [(16, 16), (13, 22)], ids=["even", "odd"])
def test_outputs_have_the_size_of_their_images(network, size):
    x = images(2, size)
    y = network.apply(network.init(jax.random.key(0), x), x)
    assert y.shape == (2, *size, 2) and np.abs(y).max() <= 1


def test_odd_sizes_are_padded_by_reflection():
    network, x = UNet(1, 4, 2, norm=PLAIN), images(1, (13, 16))
    variables = network.init(jax.random.key(0), x)
    mirrored = jnp.concatenate([x, x[:, -2:-5:-1]], axis=1)
    np.testing.assert_allclose(network.apply(variables, x), network.apply(variables, mirrored)[:, :13], atol=1e-6)


def test_resampling_leaves_a_constant_image_as_it_is():
    x = jnp.full((1, 6, 8, 2), 0.7)
    np.testing.assert_allclose(blurred_down(x), 0.7, rtol=1e-6)
    np.testing.assert_allclose(blurred_up(x), 0.7, rtol=1e-6)
    assert blurred_down(x).shape == (1, 3, 4, 2) and blurred_up(x).shape == (1, 12, 16, 2)


def test_dropout_is_in_the_blocks_after_the_innermost_one():
    """As many as there are layers beyond five: 3 at 256, 2 at 128, none at 32."""
    for depth, blocks in ((5, 0), (6, 1), (7, 2)):
        network, x = UNet(1, 2, depth, norm=PLAIN), jnp.zeros((1, 2**depth, 2**depth, 1))
        variables = jax.eval_shape(network.init, jax.random.key(0), x)
        program = jax.make_jaxpr(lambda variables, key: network.apply(variables, x, rngs={"dropout": key}))
        assert str(program(variables, jax.random.key(0))).count("random_bits") == blocks


def test_a_pool_does_what_the_reference_does():
    """Contents against a plain loop with the same coins; a pool that is not full returns what it is given."""
    size, total = 3, 40
    new = jnp.arange(total, dtype=jnp.float32).reshape(-1, 2, 1, 1, 1)
    pool, kept, returned = empty_pool(size, (1, 1, 1)), [], []
    for step, pair in enumerate(new):
        key = jax.random.key(step)
        pool, seen = exchange(pool, pair, key)
        expected = []
        for image, each in zip(np.ravel(pair), jax.random.split(key, 2)):
            coin, slot = jax.random.split(each)
            if len(kept) < size:
                kept.append(image)
                expected.append(image)
            elif bool(jax.random.bernoulli(coin)):
                place = int(jax.random.randint(slot, (), 0, size))
                expected.append(kept[place])
                kept[place] = image
            else:
                expected.append(image)
        np.testing.assert_array_equal(np.ravel(seen), expected)
        np.testing.assert_array_equal(np.ravel(pool["images"])[: len(kept)], kept)
        returned += [a == b for a, b in zip(np.ravel(seen), np.ravel(pair))]
    assert int(pool["count"]) == size
    assert 0.3 < np.mean(returned[size:]) < 0.7


def test_the_losses_of_a_cyclegan_are_those_of_its_paper():
    """Computed anew from the networks alone, with the weights halved as the docs say."""
    x, y = images(2), images(2, seed=1)
    nets = (ResNetTranslator(1, 4, 1), ResNetTranslator(1, 4, 1))
    judges = (PatchDiscriminator(4, 1, PLAIN), PatchDiscriminator(4, 1, PLAIN))
    model = CycleGAN(nets, judges, pool=0)
    params, extra = model.init(jax.random.key(0), {"x": x, "y": y})
    state = State(jnp.int32(0), jax.random.key(1), params, (), extra)
    ab, ba = (
        lambda a, n=n, side=side: n.apply({"params": params[GENERATOR][side]["network"]}, a)
        for n, side in zip(nets, ("a2b", "b2a"))
    )
    of_b, of_a = (
        lambda a, n=n, side=side: n.apply({"params": params[DISCRIMINATOR][side]["network"]}, a)
        for n, side in zip(judges, ("a2b", "b2a"))
    )
    l1, square = lambda a, b: jnp.abs(a - b).mean(), lambda a: (a**2).mean()
    fake_b, fake_a = ab(x), ba(y)
    paper = square(of_b(fake_b) - 1) + square(of_a(fake_a) - 1)
    paper += 10 * (l1(ba(fake_b), x) + l1(ab(fake_a), y)) + 5 * (l1(ab(y), y) + l1(ba(x), x))
    prepared = model.prepare(state, {"x": x, "y": y}, jax.random.key(2))
    generators, discriminators = model.objectives
    loss, (new, metrics) = generators.loss(params[GENERATOR], state, prepared, jax.random.key(2))
    np.testing.assert_allclose(loss, paper / 2, rtol=1e-5)
    paper = 0.5 * (square(of_b(y) - 1) + square(of_b(fake_b)) + square(of_a(x) - 1) + square(of_a(fake_a)))
    loss, _ = discriminators.loss(params[DISCRIMINATOR], state, prepared, jax.random.key(2))
    np.testing.assert_allclose(loss, paper, rtol=1e-5)
    np.testing.assert_allclose(model.translate(state, y, "b2a"), fake_a, atol=1e-6)
    assert set(new) <= set(extra) and {"cycle_x", "cycle_y", "identity_x", "identity_y"} <= set(metrics)


def test_discriminators_judge_what_was_made_before_the_step():
    """As in the reference: both players move from the State before the step."""
    x, y = images(2), images(2, seed=1)
    net, judge = ResNetTranslator(1, 4, 1), PatchDiscriminator(4, 1, PLAIN)
    model = CycleGAN((net, net), (judge, judge), pool=0)
    tx = {player: optax.sgd(0.1) for player in (GENERATOR, DISCRIMINATOR)}
    algorithm = descent(model, tx)
    state = algorithm.init(jax.random.key(0), {"x": x, "y": y})
    after, _ = jax.jit(algorithm.step)(state, {"x": x, "y": y})
    fake = model.translate(state, x)

    def loss(params):
        judged = lambda a: judge.apply({"params": params["network"]}, a)
        return 0.5 * (((judged(y) - 1) ** 2).mean() + (judged(fake) ** 2).mean())

    before = state.params[DISCRIMINATOR]["a2b"]
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, before, jax.grad(loss)(before))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params[DISCRIMINATOR]["a2b"], expected)


@pytest.mark.parametrize("maps", [(), ("block_0", "block_1")])
def test_the_contrast_of_patches_against_plain_sums(maps):
    x, made = images(2), images(2, seed=1)
    model = CUT(ResNetTranslator(1, 4, 2), PatchDiscriminator(4, 1, PLAIN), patches=1000, width=8, maps=maps)
    params, extra = model.init(jax.random.key(0), {"x": x, "y": x})
    state = State(jnp.int32(0), jax.random.key(1), params, (), extra)
    inner = state._replace(params={**params, GENERATOR: params[GENERATOR]["network"]})
    value = model.contrast(params[GENERATOR], inner, x, made, jax.random.key(2))
    heads, losses = params[GENERATOR]["heads"], []
    query, source = (model._features(params[GENERATOR]["network"], inner, a) for a in (made, x))
    assert set(query) == {"padded", "halved_0", "halved_1", "block_0", "block_1"}
    for name in maps or query:

        def unit(a, name=name):
            dense = lambda h, part: h @ heads[f"{name}_{part}"]["kernel"] + heads[f"{name}_{part}"]["bias"]
            h = dense(jax.nn.relu(dense(a.reshape(len(a), -1, a.shape[-1]), "hidden")), "output")
            return np.asarray(h / jnp.sqrt((h**2).sum(axis=-1, keepdims=True) + 1e-12), np.float64)

        for q, k in zip(unit(query[name]), unit(source[name])):
            similar = q @ k.T / 0.07
            losses.append(np.mean(np.log(np.exp(similar).sum(axis=1)) - np.diag(similar)))
    np.testing.assert_allclose(value, np.mean(losses), rtol=1e-4)
    gradient = jax.grad(lambda x: model.contrast(params[GENERATOR], inner, x, made, jax.random.key(2)))(x)
    assert not np.any(gradient)  # none through the source


def test_pix2pix_adds_the_distance_to_the_truth():
    x, y = images(4, channels=2), images(4, seed=1)
    model = Pix2Pix(UNet(1, 4, 2, norm=PLAIN), PatchDiscriminator(4, 1, PLAIN), l1=7.0, adversarial=least_squares())
    params, extra = model.init(jax.random.key(0), {"x": x, "y": y})
    state = State(jnp.int32(0), jax.random.key(1), params, (), extra)
    fake = model.translate(state, x)
    judged = model.discriminator.apply({"params": params[DISCRIMINATOR]["network"]}, jnp.concatenate([x, fake], -1))
    expected = 0.5 * ((judged - 1) ** 2).mean() + 7 * jnp.abs(fake - y).mean()
    prepared = model.prepare(state, {"x": x, "y": y}, jax.random.key(2))
    generator = next(o for o in model.objectives if o.player == GENERATOR)
    loss, _ = generator.loss(params[GENERATOR], state, prepared, jax.random.key(2))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_statistics_at_test_time_are_a_switch():
    """Running statistics by default, those of the image on request: both ignore the batch, and differ."""
    x, y = images(4), images(4, seed=1)
    model = Pix2Pix(UNet(1, 4, 3, norm=batch), PatchDiscriminator(4, 1))
    params, extra = model.init(jax.random.key(0), {"x": x, "y": y})
    state = State(jnp.int32(0), jax.random.key(1), params, (), extra)
    running, own = model.translate(state, x), model.translate(state, x, own=True)
    assert not np.allclose(running, own)
    variables = {"params": params[GENERATOR]["network"], "batch_stats": extra["batch_stats"][GENERATOR]["network"]}
    alone, _ = model.generator.apply(variables, x[1:2], mutable=["batch_stats"])
    np.testing.assert_allclose(own[1], alone[0], atol=1e-5)


def test_noise_gives_several_answers():
    x, y = images(2), images(2, seed=1)
    model = Pix2Pix(UNet(1, 4, 2, norm=PLAIN), PatchDiscriminator(4, 1, PLAIN), noise=3)
    params, extra = model.init(jax.random.key(0), {"x": x, "y": y})
    state = State(jnp.int32(0), jax.random.key(1), params, (), extra)
    drawn = [model.translate(state, x, key=jax.random.key(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_bad_input_is_named():
    x = images(2)
    network, judge = UNet(1, 4, 2), PatchDiscriminator(4, 1)
    with pytest.raises(ValueError, match="give pairs of images"):
        Pix2Pix(network, judge).init(jax.random.key(0), {"x": x})
    with pytest.raises(ValueError, match="one size"):
        Pix2Pix(network, judge).init(jax.random.key(0), {"x": x, "y": images(2, (8, 8))})
    with pytest.raises(ValueError, match="l1 and noise"):
        Pix2Pix(network, judge, l1=-1)
    net = ResNetTranslator(3, 4, 1)
    with pytest.raises(ValueError, match="identity=0"):
        CycleGAN((net, net), (judge, judge)).init(jax.random.key(0), {"x": x, "y": images(2, channels=3)})
    with pytest.raises(ValueError, match="every=1"):
        from gen_jax.models.gan import r1

        CycleGAN((net, net), (judge, judge), regularizers=(r1(every=4),))
    from gen_jax.models.gan import mode_seeking

    with pytest.raises(ValueError, match="different noise"):
        CUT(net, judge, regularizers=(mode_seeking(),))
    with pytest.raises(ValueError, match="multiple of 4"):
        CUT(net, judge, flip=True).init(jax.random.key(0), {"x": images(2, (16, 18)), "y": images(2, (16, 18))})
    with pytest.raises(ValueError, match="not 'b2a'"):
        CUT(net, judge).translate(None, x, "b2a")
    with pytest.raises(ValueError, match="keeps no map 'block_7'"):
        CUT(ResNetTranslator(1, 4, 1), judge, maps=("block_7",)).init(jax.random.key(0), {"x": x, "y": x})
    with pytest.raises(ValueError, match="keeps no features"):
        CUT(Conv(1), judge).init(jax.random.key(0), {"x": x, "y": x})


@pytest.mark.representatives("UNet")
@pytest.mark.parametrize("make", [UNet, ResNetTranslator, PatchDiscriminator])
def test_half_precision_is_close_to_single(make):
    options = {UNet: {"depth": 3}, ResNetTranslator: {"blocks": 1}, PatchDiscriminator: {"layers": 1}}[make]
    x = images(2)
    whole, half = make(features=4, **options), make(features=4, dtype=jnp.bfloat16, **options)
    variables = whole.init(jax.random.key(0), x)
    a, b = whole.apply(variables, x), half.apply(variables, x)
    assert b.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=0.05 * float(jnp.abs(a).max()))
    assert not np.array_equal(a, b)


def test_a_classifier_keeps_translations_recognizable():
    """Its loss is the cross-entropy on images and their translations; the generators' gains that of its answers."""
    x, y = images(6), images(6, seed=1)
    label = np.arange(6, dtype=np.int32) % 3
    networks = (ResNetTranslator(1, 4, 1),) * 2, (PatchDiscriminator(4, 1, PLAIN),) * 2
    plain = CycleGAN(*networks, pool=0)
    model = replace(plain, classifier=ConvEncoder((4,), 8, 3), semantic=0.7)
    params, extra = model.init(jax.random.key(0), {"x": x, "y": y, "label": label})
    state = State(jnp.int32(0), jax.random.key(1), params, (), extra)
    key, batch = jax.random.key(2), model.prepare(state, {"x": x, "y": y, "label": label}, jax.random.key(3))
    answer = lambda a: np.asarray(model.classifier.apply({"params": params["classifier"]}, a), np.float64)
    log_softmax = lambda a: a - np.log(np.exp(a).sum(axis=1, keepdims=True))
    losses = {o.player: o.loss for o in model.objectives}
    loss, (_, found) = losses["classifier"](params["classifier"], state, batch, key)
    both = log_softmax(np.concatenate([answer(x), answer(batch["fakes"]["a2b"])]))
    np.testing.assert_allclose(loss, -both[np.arange(12), np.tile(label, 2)].mean(), rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"].value, np.mean(both[:6].argmax(axis=1) == label))
    disagreement = 0.0
    for real, fake in ((x, batch["fakes"]["a2b"]), (y, batch["fakes"]["b2a"])):
        disagreement -= (np.exp(log_softmax(answer(real))) * log_softmax(answer(fake))).sum(axis=1).mean()
    without, _ = next(o.loss for o in plain.objectives if o.player == GENERATOR)(params[GENERATOR], state, batch, key)
    found, _ = losses[GENERATOR](params[GENERATOR], state, batch, key)
    np.testing.assert_allclose(found - without, 0.7 * disagreement, rtol=1e-4)
    with pytest.raises(ValueError, match='"label"'):
        model.init(jax.random.key(0), {"x": x, "y": y})


@pytest.mark.slow
def test_a_population_of_cyclegans_is_one_program():
    x, y = images(8), images(8, seed=1)
    net, judge = ResNetTranslator(1, 4, 1), PatchDiscriminator(4, 1, PLAIN)
    model = CycleGAN((net, net), (judge, judge), pool=4)
    tx = optax.adam(1e-3, b1=0.5)
    algorithm = descent(model, {GENERATOR: tx, DISCRIMINATOR: tx})
    seeds = fit(population(algorithm, 2), Resident({"x": x, "y": y}, 4), steps=3)
    first, second = (model.translate(member(seeds, i), x[:2]) for i in (0, 1))
    assert first.shape == (2, 16, 16, 1) and not np.allclose(first, second)
