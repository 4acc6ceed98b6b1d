"""Models of public libraries, built offline with random weights, by name.

The list is for coverage only: nothing in sslx knows any of them.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.public.harness import Subject

os.environ.setdefault("KERAS_BACKEND", "jax")
KEY = jax.random.key(0)
MODELS: dict[str, Callable[[], Subject]] = {}


def _library(name: str) -> Any:
    reason = f"public models of {name} are not tested: pip install --group public"
    return pytest.importorskip(name, reason=reason)


def _noise(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(5).normal(size=shape), jnp.float32)


def _tokens(length: int = 8) -> jax.Array:
    rng = np.random.default_rng(5)
    return jnp.asarray(rng.integers(1, 50, (2, length)), jnp.int32)


def _haiku(forward: Callable[..., Any], *args: Any) -> Subject:
    hk = _library("haiku")
    train, infer = (
        hk.transform_with_state(lambda *a, training=training: forward(*a, training))
        for training in (True, False)
    )
    params, state = train.init(KEY, *args)

    def fn(variables: Any, *args: Any) -> Any:
        return infer.apply(variables["params"], variables["state"], KEY, *args)[0]

    return Subject(fn, {"params": params, "state": state}, args)


def _haiku_net(name: str, **options: Any) -> Callable[[], Subject]:
    def build() -> Subject:
        make = getattr(_library("haiku").nets, name)
        forward = lambda x, training: make(num_classes=10, **options)(x, training)
        return _haiku(forward, _noise(2, 32, 32, 3))

    return build


def _haiku_recurrent() -> Subject:
    hk = _library("haiku")

    def forward(x: Any, training: bool) -> Any:
        core = hk.DeepRNN([hk.LSTM(32), jax.nn.relu, hk.GRU(24), hk.Linear(7)])
        return hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))[0]

    return _haiku(forward, _noise(6, 2, 10))


def _haiku_transformer() -> Subject:
    hk = _library("haiku")

    def forward(x: Any, training: bool) -> Any:
        init = hk.initializers.VarianceScaling(1.0)
        for _ in range(2):
            h = hk.LayerNorm(-1, True, True)(x)
            x = x + hk.MultiHeadAttention(4, 8, w_init=init)(h, h, h)
            h = hk.LayerNorm(-1, True, True)(x)
            x = x + hk.Linear(32)(jax.nn.gelu(hk.Linear(64)(h)))
        return hk.Linear(10)(x.mean(1))

    return _haiku(forward, _noise(2, 6, 32))


MODELS["haiku.DeepRNN"] = _haiku_recurrent
MODELS["haiku.MultiHeadAttention"] = _haiku_transformer
MODELS["haiku.ResNet18"] = _haiku_net("ResNet18")
MODELS["haiku.ResNet50-v2"] = _haiku_net("ResNet50", resnet_v2=True)
MODELS["haiku.MobileNetV1"] = _haiku_net("MobileNetV1")


def _nnx(model: Any, *args: Any) -> Subject:
    from flax import nnx

    model.eval()
    graph, state = nnx.split(model)
    return Subject(lambda s, *a: nnx.merge(graph, s)(*a), state, args)


def _nnx_transformer() -> Subject:
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.norm1 = nnx.LayerNorm(32, rngs=rngs)
            self.heads = nnx.MultiHeadAttention(4, 32, decode=False, rngs=rngs)
            self.norm2 = nnx.LayerNorm(32, rngs=rngs)
            self.up = nnx.Linear(32, 64, rngs=rngs)
            self.down = nnx.Linear(64, 32, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = x + self.heads(self.norm1(x))
            return x + self.down(nnx.gelu(self.up(self.norm2(x))))

    class Tied(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.embed = nnx.Embed(50, 32, rngs=rngs)
            self.blocks = nnx.List([Block(rngs) for _ in range(2)])

        def __call__(self, tokens: Any) -> Any:
            x = self.embed(tokens)
            for block in self.blocks:
                x = block(x)
            return self.embed.attend(x)

    return _nnx(Tied(nnx.Rngs(0)), _tokens())


MODELS["nnx.MultiHeadAttention"] = _nnx_transformer


def _keras(name: str, size: int = 32) -> Callable[[], Subject]:
    def build() -> Subject:
        keras = _library("keras")
        if keras.backend.backend() != "jax":
            pytest.skip("Keras runs on another backend: set KERAS_BACKEND=jax")
        make = getattr(keras.applications, name)
        shape = (size, size, 3)
        model = make(
            weights=None, input_shape=shape, classes=10, classifier_activation=None
        )
        variables = {
            "trainable": [v.value for v in model.trainable_variables],
            "other": [v.value for v in model.non_trainable_variables],
        }

        def fn(v: Any, x: Any) -> Any:
            return model.stateless_call(v["trainable"], v["other"], x, training=False)[
                0
            ]

        return Subject(fn, variables, (_noise(2, *shape),))

    return build


for _name, _size in {
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "DenseNet121": 32,
    "NASNetMobile": 32,
    "ResNet50V2": 32,
    "ConvNeXtTiny": 32,
    "Xception": 71,
    "InceptionV3": 75,
}.items():
    MODELS[f"keras.{_name}"] = _keras(_name, _size)


def _equimo(name: str, size: int, **options: Any) -> Callable[[], Subject]:
    def build() -> Subject:
        eqx, zoo = _library("equinox"), _library("equimo.models")
        make = getattr(zoo, name)
        model = make(key=KEY, in_channels=3, num_classes=10, **options)
        arrays, static = eqx.partition(eqx.nn.inference_mode(model), eqx.is_array)

        def fn(variables: Any, x: Any) -> Any:
            whole = eqx.combine(variables, static)
            return jax.vmap(lambda one: whole(one, key=KEY, inference=True))(x)

        return Subject(fn, arrays, (_noise(2, 3, size, size),), "OI...")

    return build


_SMALL = {"img_size": 32, "dim": 16, "depths": [1, 1], "num_heads": [2, 4]}
MODELS["equimo.VisionTransformer"] = _equimo(
    "VisionTransformer",
    32,
    **{"img_size": 32, "dim": 32, "patch_size": 8, "num_heads": 4, "depths": [2]},
)
MODELS["equimo.Mlla"] = _equimo("Mlla", 32, **_SMALL)
MODELS["equimo.Vssd"] = _equimo(
    "Vssd", 32, **_SMALL, attentions_layers=("mamba2mixer", "attention")
)
MODELS["equimo.mobilenetv3_small"] = _equimo("mobilenetv3_small", 64)
MODELS["equimo.iformer_t"] = _equimo("iformer_t", 64)
MODELS["equimo.reduceformer_b1"] = _equimo("reduceformer_backbone_b1", 64)


def _flax_of(name: str, config: str, *args: Any, **options: Any) -> None:
    def build() -> Subject:
        library = _library("transformers")
        if not hasattr(library, f"Flax{name}"):
            pytest.skip(f"this transformers has no Flax{name}: install one below 4.50")
        settings = getattr(library, config)(**options)
        shape = {} if "CLIP" in name else {"input_shape": args[0].shape}
        if args[0].ndim == 4:
            shape = {"input_shape": (1, 32, 32, 3)}
        model = getattr(library, f"Flax{name}")(settings, seed=0, **shape)

        def fn(variables: Any, *args: Any) -> list[Any]:
            return jax.tree.leaves(model(*args, params=variables)[0])

        return Subject(fn, model.params, args)

    MODELS[f"transformers.{name}"] = build


_DECODER = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 4}
_LAYERS = {"num_hidden_layers": 2, "intermediate_size": 64}
_SHORT = {"max_position_embeddings": 16}
_GQA = {**_DECODER, **_LAYERS, **_SHORT, "num_key_value_heads": 2}
_flax_of("BertModel", "BertConfig", _tokens(), **_DECODER, **_LAYERS)
_flax_of(
    "BigBirdModel",
    "BigBirdConfig",
    _tokens(),
    **_DECODER,
    **_LAYERS,
    attention_type="original_full",
)
_flax_of("LlamaForCausalLM", "LlamaConfig", _tokens(), **_GQA)
_flax_of("GemmaForCausalLM", "GemmaConfig", _tokens(), **_GQA, head_dim=8)
_flax_of(
    "GPT2LMHeadModel",
    "GPT2Config",
    _tokens(),
    **{"vocab_size": 50, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4},
)
_flax_of(
    "BloomForCausalLM",
    "BloomConfig",
    _tokens(),
    **{"vocab_size": 50, "hidden_size": 32, "n_layer": 2, "n_head": 4},
)
_flax_of(
    "ViTModel",
    "ViTConfig",
    _noise(2, 3, 32, 32),
    **{"hidden_size": 32, "num_attention_heads": 4, "image_size": 32, "patch_size": 8},
    **_LAYERS,
)
_flax_of(
    "ResNetModel",
    "ResNetConfig",
    _noise(2, 3, 32, 32),
    **{"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2]},
)
_flax_of(
    "RegNetModel",
    "RegNetConfig",
    _noise(2, 3, 32, 32),
    **{"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2]},
    groups_width=8,
)


def build(name: str) -> Subject:
    """The model of that name; skips the test where its library is missing."""
    importlib.invalidate_caches()
    return MODELS[name]()
