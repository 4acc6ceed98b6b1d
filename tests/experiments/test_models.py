import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import models
from experiments.models import plain
from sslx import measure

SLOW = pytest.mark.slow


def cost(name, shape=(32, 32, 3), classes=10):
    return cost_of(models.create(name, classes), shape)


def cost_of(model, shape=(32, 32, 3)):
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return measure.cost(model.apply, variables, images), variables


def resnet_by_hand(blocks: int) -> tuple[int, int]:
    """Multiply-accumulates and weights, from the papers' table of shapes."""
    macs, weights = 32 * 32 * 9 * 3 * 16, 9 * 3 * 16
    width_in = 16
    for stage, width in enumerate((16, 32, 64)):
        pixels = (32 >> stage) ** 2
        for block in range(blocks):
            kernels = 9 * width_in * width + 9 * width * width
            if width_in != width:
                kernels += width_in * width
            macs, weights = macs + pixels * kernels, weights + kernels
            width_in = width if block == 0 else width_in
    return macs + 640, weights + 640


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("resnet8", 1), ("resnet20", 3), ("resnet32", 5), ("resnet56", 9)],
)
def test_resnet_costs_what_the_table_of_shapes_says(name, blocks):
    found, _ = cost(name)
    assert (found.macs, found.weights) == resnet_by_hand(blocks)


def test_resnet20_has_the_published_size():
    found, _ = cost("resnet20")
    assert found.weights == 270_896
    assert round(found.macs / 1e6, 2) == 40.81


def test_lenet_and_convnet_cost_what_caffe_counts():
    lenet, _ = cost("lenet", (28, 28, 1))
    parts = (24**2 * 20 * 25, 8**2 * 50 * 20 * 25, 800 * 500, 500 * 10)
    assert [layer.macs for layer in lenet.layers] == list(parts)
    convnet, variables = cost("convnet")
    parts = (32**2 * 32 * 75, 16**2 * 32 * 800, 8**2 * 64 * 800, 1024 * 10)
    assert [layer.macs for layer in convnet.layers] == list(parts)
    assert variables["params"]["dense"]["kernel"].shape == (1024, 10)


@pytest.mark.parametrize(
    ("name", "classes", "parameters", "macs"),
    [
        # Network Slimming's tables; its FLOPs, halved, count BatchNorm too.
        ("vgg19", 10, 20.04e6, 7.97e8 / 2),
        ("densenet40", 100, 1.06e6, 5.33e8 / 2),
        pytest.param("vgg19", 100, 20.08e6, 7.97e8 / 2, marks=SLOW),
        pytest.param("densenet40", 10, 1.02e6, 5.33e8 / 2, marks=SLOW),
        pytest.param("resnet164", 10, 1.70e6, 4.99e8 / 2, marks=SLOW),
        pytest.param("resnet164", 100, 1.73e6, 5.00e8 / 2, marks=SLOW),
        # Distiller's model zoo.
        ("vgg16", 10, 14.7e6, 313e6),
    ],
)
def test_networks_have_the_published_size(name, classes, parameters, macs):
    found, variables = cost(name, classes=classes)
    trained = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert trained == pytest.approx(parameters, rel=0.005)
    assert found.macs == pytest.approx(macs, rel=0.01)


def test_densenet40_with_24_first_channels_is_the_one_hrank_counts():
    found, _ = cost_of(models.DenseNet(40, first=24))
    assert found.macs == pytest.approx(167.41e6 / (1 - 0.408), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "bottleneck"),
    [
        pytest.param("densenet100", False, marks=SLOW),
        pytest.param("densenet100bc", True, marks=SLOW),
    ],
)
def test_densenet100_costs_what_its_definition_says(name, bottleneck):
    layers, growth, width = (16, 12, 24) if bottleneck else (32, 12, 16)
    macs, weights = 32 * 32 * 27 * width, 27 * width
    for block, pixels in enumerate((32**2, 16**2, 8**2)):
        for _ in range(layers):
            wide = 4 * growth
            kernel = width * wide + 9 * wide * growth if bottleneck else None
            kernel = kernel or 9 * width * growth
            macs, weights, width = macs + pixels * kernel, weights + kernel, width + 12
        if block < 2:
            kernel = width * (width // 2 if bottleneck else width)
            macs, weights = macs + pixels * kernel, weights + kernel
            width = width // 2 if bottleneck else width
    found, _ = cost(name)
    assert (found.macs, found.weights) == (macs + 10 * width, weights + 10 * width)


def test_mlp_has_the_papers_layers():
    found, _ = cost("mlp", (28, 28, 1))
    assert [layer.kernel for layer in found.layers] == [
        (784, 500),
        (500, 300),
        (300, 10),
    ]


def test_eighteen_convolutions_of_resnet20_are_regularised_in_the_papers_shapes():
    from experiments.cifar_ssl import sparsity

    _, variables = cost("resnet20")
    paths = sparsity.kernels(variables["params"])
    shapes = []
    for path in paths:
        leaf = variables["params"]
        for key in path.split("/"):
            leaf = leaf[key]
        shapes.append((leaf.shape[3], int(np.prod(leaf.shape[:3]))))
    expected = [(16, 144)] * 6 + [(32, 144)] + [(32, 288)] * 5
    expected += [(64, 288)] + [(64, 576)] * 5
    assert sorted(shapes) == sorted(expected)


def test_caffes_pooling_rounds_up_and_means_leave_padding_out():
    model = models.ConvNet()
    variables = models.init(model)
    flat = jax.tree.map(jnp.zeros_like, variables)
    # A constant image stays constant through every pool where padding is left out.
    params = flat["params"]
    for name in ("conv1", "conv2", "conv3"):
        params[name]["bias"] = jnp.ones_like(params[name]["bias"])
    params["dense"]["kernel"] = jnp.ones((1024, 10)) / 1024
    logits = model.apply({"params": params}, jnp.zeros((1, 32, 32, 3)))
    np.testing.assert_allclose(logits, 1.0, rtol=1e-6)


@pytest.mark.parametrize(("size", "pixels"), [(3, 32), (3, 17), (2, 24), (2, 7)])
def test_maxima_of_slices_are_those_of_windows(size, pixels):
    x = jax.random.normal(jax.random.key(0), (2, pixels, pixels, 3))
    over = (pixels - size) % 2
    wanted = nn.max_pool(x, (size, size), (2, 2), padding=((0, over), (0, over)))
    np.testing.assert_array_equal(plain._max_pool(x, size), wanted)


def test_wrong_names_and_depths_are_told_what_is_right():
    with pytest.raises(ValueError, match="got 'resnet19', expected one of lenet"):
        models.create("resnet19")
    with pytest.raises(ValueError, match="got 21, expected 6n"):
        models.init(models.ResNet(21))
    with pytest.raises(ValueError, match="got 41, expected 3n"):
        models.init(models.DenseNet(41))
    with pytest.raises(ValueError, match="got 41, expected 6n"):
        models.init(models.DenseNet(41, bottleneck=True))
    with pytest.raises(ValueError, match="got 111, expected 9n"):
        models.init(models.PreResNet(111))
    with pytest.raises(ValueError, match="got 11, expected 16 or 19"):
        models.init(models.VGG(11))
