import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import imagenet as models
from sslx import measure


def shapes(name, dtype=jnp.float32):
    model = models.create(name, dtype=dtype)
    images = jax.ShapeDtypeStruct((1, *models.image_shape(name)), dtype)
    return model, jax.eval_shape(model.init, jax.random.key(0), images), images


# Totals of the public releases: CaffeNet and GoogLeNet of the Caffe model zoo, VGG-16,
# ResNet-50 and DenseNet-121 of their authors.
PARAMETERS = {
    "alexnet": 60_965_224,
    "vgg16": 138_357_544,
    "googlenet": 6_998_552,
    "resnet50": 25_557_032,
    "densenet121": 7_978_856,
}
MACS = {
    "alexnet": 724_406_816,
    "vgg16": 15_470_264_320,
    "googlenet": 1_582_671_872,
    "resnet50": 3_857_973_248,
    "densenet121": 2_834_161_664,
}


@pytest.mark.parametrize("name", models.MODELS)
def test_parameters_and_multiply_accumulates_are_the_published_ones(name):
    model, variables, images = shapes(name)
    found = measure.cost(model.apply, variables, images)
    leaves = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in leaves) == PARAMETERS[name]
    assert found.macs == MACS[name]
    assert not found.notes


def test_every_layer_of_caffenet_has_its_published_shape():
    model, variables, images = shapes("alexnet")
    layers = measure.cost(model.apply, variables, images).layers
    assert [(x.kernel, x.output[1:]) for x in layers] == [
        ((11, 11, 3, 96), (55, 55, 96)),
        ((5, 5, 48, 256), (27, 27, 256)),
        ((3, 3, 256, 384), (13, 13, 384)),
        ((3, 3, 192, 384), (13, 13, 384)),
        ((3, 3, 192, 256), (13, 13, 256)),
        ((9216, 4096), (4096,)),
        ((4096, 4096), (4096,)),
        ((4096, 1000), (1000,)),
    ]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("googlenet", {112, 56, 28, 14, 7}),
        ("resnet50", {112, 56, 28, 14, 7}),
        ("densenet121", {112, 56, 28, 14, 7}),
        ("vgg16", {224, 112, 56, 28, 14}),
    ],
)
def test_feature_maps_halve_as_published(name, sizes):
    model, variables, images = shapes(name)
    layers = measure.cost(model.apply, variables, images).layers
    assert {x.output[1] for x in layers if x.kind == "conv"} == sizes


@pytest.mark.parametrize("name", models.MODELS)
def test_bfloat16_is_for_the_computation_only(name):
    model, variables, images = shapes(name, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    call = lambda v, x: model.apply(v, x, capture_intermediates=True)
    logits, state = jax.eval_shape(call, variables, images)
    assert logits.dtype == jnp.float32 and logits.shape == (1, 1000)
    inner = jax.tree.leaves(state["intermediates"])
    assert {leaf.dtype for leaf in inner} == {jnp.dtype("bfloat16"), logits.dtype}
    assert sum(leaf.dtype == logits.dtype for leaf in inner) == 1


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "googlenet"])
def test_dropout_needs_a_key_and_training(name):
    model, variables, images = shapes(name)

    def drops(keys, train):
        call = lambda v, x: model.apply(v, x, train=train, rngs=keys)
        return "random_bits" in str(jax.make_jaxpr(call)(variables, images))

    keys = {"dropout": jax.random.key(0)}
    assert drops(keys, True)
    assert not drops(keys, False)
    assert not drops({}, True)


def test_response_norm_is_the_sum_over_five_channels():
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 7)).astype(np.float32) * 50
    expected = np.empty_like(x)
    for c in range(7):
        total = (x[..., max(0, c - 2) : c + 3] ** 2).sum(-1)
        expected[..., c] = x[..., c] / (1 + 1e-4 * total / 5) ** 0.75
    np.testing.assert_allclose(models._response_norm(x), expected, rtol=1e-5)


def test_wrong_names_are_told_what_is_right():
    with pytest.raises(ValueError, match="got 'vgg19', expected one of alexnet"):
        models.create("vgg19")
