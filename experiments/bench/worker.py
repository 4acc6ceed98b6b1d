"""One runtime in a process of its own: loads networks, and times calls on request.

    PYTHON -m experiments.bench.worker

Reads one JSON object a line, `{"do": NAME, ...}`, and answers with one, which is
`{"error": ...}` if it could not. Needs neither JAX nor sslx, but the runtime asked for.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

_CALLS: dict[str, Callable[[], Any]] = {}


def onnxruntime(name: str, path: str, images: str, threads: int) -> dict[str, Any]:
    """An ONNX file by ONNX Runtime."""
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(path, options, ["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.load(images)}
    _CALLS[name] = lambda: session.run(None, feed)[0]
    return {"version": runtime.__version__}


def openvino(name: str, path: str, images: str, threads: int) -> dict[str, Any]:
    """An ONNX file by OpenVINO, tuned for latency, in single precision."""
    runtime: Any = importlib.import_module("openvino")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
    }
    request = runtime.Core().compile_model(path, "CPU", settings).create_infer_request()
    x = np.load(images)
    _CALLS[name] = lambda: np.asarray(next(iter(request.infer([x]).values())))
    return {"version": runtime.__version__}


def torch(
    name: str, network: str, batch: int, modes: list[str], threads: int
) -> dict[str, Any]:
    """A network halved by Torch-Pruning; one call `NAME MODE` each."""
    bench_torch = importlib.import_module("experiments.bench.pytorch")
    library: Any = importlib.import_module("torch")
    library.set_num_threads(threads)
    model, image = bench_torch.create(network), library.randn(1, 3, 32, 32)
    before = bench_torch.size(model, image)
    bench_torch.prune(model, image)
    images = library.randn(batch, 3, 32, 32)
    failed, outs = {}, []
    for mode in modes:
        try:
            call, out = bench_torch.runner(model, images, mode)
        except Exception as error:  # a mode may need a compiler that is not there
            failed[mode] = f"{type(error).__name__}: {error}"[:200]
            continue
        outs.append(out.numpy())
        np.testing.assert_allclose(outs[-1], outs[0], rtol=1e-3, atol=1e-3)
        _CALLS[f"{name} {mode}"] = call
    after = bench_torch.size(model, image)
    return {
        "version": library.__version__,
        "failed": failed,
        "before": before,
        "after": after,
    }


def training(
    name: str, network: str, batch: int, modes: list[str], threads: int
) -> dict[str, Any]:
    """Training steps of a network in PyTorch; one call `NAME MODE` each."""
    bench_torch = importlib.import_module("experiments.bench.pytorch")
    library: Any = importlib.import_module("torch")
    library.set_num_threads(threads)
    images = library.randn(batch, 3, 32, 32)
    labels = library.arange(batch) % 10
    count = 0
    for mode in modes:
        model = bench_torch.create(network).train()
        count = sum(p.numel() for p in model.parameters())
        _CALLS[f"{name} {mode}"] = bench_torch.trainer(model, images, labels, mode)
    return {"parameters": count}


def torch_versions() -> dict[str, Any]:
    """Of PyTorch and Torch-Pruning."""
    bench_torch = importlib.import_module("experiments.bench.pytorch")
    return bench_torch.versions()


def pruning(network: str, rounds: int) -> dict[str, Any]:
    """Seconds of Torch-Pruning's parts, per round."""
    bench_torch = importlib.import_module("experiments.bench.pytorch")
    library: Any = importlib.import_module("torch")
    image = library.randn(1, 3, 32, 32)
    found = [
        bench_torch.prune(bench_torch.create(network), image) for _ in range(rounds)
    ]
    return {"rounds": found}


def run(name: str, count: int) -> dict[str, Any]:
    """Seconds of that many calls."""
    call = _CALLS[name]
    start = time.perf_counter()
    for _ in range(count):
        call()
    return {"seconds": time.perf_counter() - start}


def output(name: str, path: str) -> dict[str, Any]:
    """What a call gives, to a `.npy` file."""
    np.save(path, np.asarray(_CALLS[name]()))
    return {}


def calls() -> dict[str, Any]:
    """Names of what can be run."""
    return {"names": list(_CALLS)}


_HANDLERS = (
    onnxruntime,
    openvino,
    torch,
    training,
    torch_versions,
    pruning,
    run,
    output,
    calls,
)
_REQUESTS: dict[str, Callable[..., dict[str, Any]]] = {
    handler.__name__: handler for handler in _HANDLERS
}


def main() -> None:
    """Answer until the input ends; what libraries print goes to the error stream."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _REQUESTS[request.pop("do")](**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
