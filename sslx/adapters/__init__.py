"""sslx with network libraries: what to give `sslx.compact`, and what comes back.

`compact` works on any JAX function of `(variables, *args)`, so most libraries need no
adapter. Import what you use; `sslx` itself imports none of them.

Linen: `module.apply` is that function already.

    >>> small = sslx.compact(model.apply)(variables, x, train=False)
    >>> y = jax.jit(small.apply)(small.variables, x, train=False)

Haiku: put the arguments in one tree.

    >>> net = hk.transform_with_state(forward)
    >>> def fn(variables, x):
    ...     return net.apply(variables["params"], variables["state"], None, x)[0]
    >>> small = sslx.compact(fn)({"params": params, "state": state}, x)

Keras (JAX backend): the same with `stateless_call`.

    >>> def fn(variables, x):
    ...     return model.stateless_call(*variables, x, training=False)[0]
    >>> variables = (
    ...     [v.value for v in model.trainable_variables],
    ...     [v.value for v in model.non_trainable_variables],
    ... )
    >>> small = sslx.compact(fn)(variables, x)

Flax NNX and Equinox keep arrays and code in one object; `sslx.adapters.nnx` and
`sslx.adapters.equinox` return smaller objects that run their own code:

    >>> from sslx.adapters import nnx
    >>> model, small = nnx.compact(model)(x)
    >>> model.conv1.out_features
    11

Sizes in attributes (`out_features`, `num_groups`, `self.heads` of hand-written
attention) are those of the smaller arrays, and the module is run and compared before it
is returned. Where several sizes are possible and no call tells which, an error asks for
it:

    >>> model, small = nnx.compact(model, sizes={"attn.heads": 3})(x)

A submodule whose own code allows no smaller size (attention that divides by the width
of a head, a norm over channels of which some are gone, a branch of which nothing is
left) keeps its arrays whole; `small.held_back` and `small.summary()` name it. The
function has no such limits: `fn, variables = nnx.function(model)`, then
`small = sslx.compact(fn)(variables, x)` and `small.apply(small.variables, x)`.

Export: `small.apply` is a JAX function, so JAX's own tools take it.

    >>> call = jax.jit(small.apply)
    >>> exported = jax.export.export(call)(small.variables, x)  # StableHLO
    >>> data = exported.serialize()

The batch size may stay symbolic if the network treats every example by itself:

    >>> def call(variables, x):
    ...     return jax.vmap(lambda one: small.apply(variables, one[None])[0])(x)
    >>> (batch,) = jax.export.symbolic_shape("batch")
    >>> free = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
    >>> exported = jax.export.export(jax.jit(call))(small.variables, free)

ONNX goes through `jax2onnx` (`pip install sslx[onnx]`):

    >>> from sslx.adapters import onnx
    >>> onnx.save("small.onnx", small, x)
"""
