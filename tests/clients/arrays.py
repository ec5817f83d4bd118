"""Arrays of every type of the protocol, the client's inputs made of them, and many requests at once."""

import queue

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import triton_to_np_dtype

DTYPES = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"]
DTYPES += ["FP16", "BF16", "FP32", "FP64", "BYTES"]


def sample(dtype, shape):
    """An array of `shape` with values that tell the types apart; strings hold bytes that are no text."""
    count = int(np.prod(shape))
    if dtype == "BYTES":
        texts = [bytes([index % 256]) * (index % 5) + b"\x00\xff" for index in range(count)]
        return np.array(texts, dtype=np.object_).reshape(shape)
    if dtype == "BOOL":
        return (np.arange(count) % 3 == 0).reshape(shape)
    kind = np.dtype(triton_to_np_dtype(dtype))
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        return np.array([limits.min, limits.max, 7] * count, dtype=kind)[:count].reshape(shape)
    return (np.arange(count) * 0.5 - 1).astype(kind).reshape(shape)


def tensor(name, dtype, array):
    """The client's input of `array`."""
    return grpcclient.InferInput(name, list(array.shape), dtype).set_data_from_numpy(array)


def infer_at_once(client, model, requests):
    """Sends all `requests`, each a list of inputs, before it waits; returns their results in the same order."""
    answers = queue.Queue()
    for number, inputs in enumerate(requests):
        client.async_infer(
            model, inputs, callback=lambda result, error: answers.put((result, error)), request_id=str(number)
        )
    results = {}
    for _ in requests:
        result, error = answers.get(timeout=30)
        if error is not None:
            raise error
        results[int(result.get_response().id)] = result
    return [results[number] for number in range(len(requests))]
