"""Whether servers give the same answer to the same request, which comes before speed. Begin at `difference`."""

import json
import math

from workloads import TOKENS


def difference(servers, model):
    """The largest difference between the first server's numbers and another's, as a part of the largest number."""
    first, *others = (answer(server, model) for server in servers)
    largest = max((abs(value) for values in first.values() for value in values), default=0) or 1
    return max((apart(first, other) / largest for other in others), default=0)


def apart(first, other):
    """The largest difference of two answers; infinite if their shapes differ."""
    if {name: len(values) for name, values in first.items()} != {name: len(values) for name, values in other.items()}:
        return float("inf")
    return max(abs(a - b) for name in first for a, b in zip(first[name], other[name], strict=True))


def answer(server, model):
    """The numbers of each output."""
    inputs = [tensor(each) for each in ask(server, f"/v2/models/{model}")["inputs"]]
    outputs = ask(server, f"/v2/models/{model}/infer", json.dumps({"inputs": inputs}))["outputs"]
    return {output["name"]: output["data"] for output in outputs}


def ask(server, path, body=None):
    """The JSON that comes back."""
    status, said = server.request(path, body)
    if status != 200:
        raise RuntimeError(f"{server.name}: {path}: {said.decode(errors='replace')[:300]}")
    return json.loads(said)


def tensor(given):
    """Made-up numbers: ones for a mask, fractions, or small numbers that are also ids of tokens."""
    sizes = [int(size) for size in given["shape"]]
    shape = [size if size >= 0 else TOKENS if at else 1 for at, size in enumerate(sizes)]
    count = math.prod(shape)
    if "mask" in given["name"]:
        data = [1] * count
    elif given["datatype"].startswith("FP"):
        data = [at % 7 / 7 for at in range(count)]
    else:
        data = [1000 + at * 37 % 1000 for at in range(count)]
    return {"name": given["name"], "datatype": given["datatype"], "shape": shape, "data": data}
