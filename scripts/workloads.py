"""The models that are measured, and one measurement of a server by Triton's perf_analyzer or by our own load generator.

Begin at `write_repository` and `analyze`. Figures compare only with others of the same machine and run, since server
and load generator share the cores.
"""

import csv
import json
import os
import random
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PERF_ANALYZER = ROOT / "third_party" / "perf-analyzer" / "perf_analyzer"
BINARY = ROOT / "target" / "release" / "nereid"
LOAD = Path(os.environ.get("NEREID_LOAD", ROOT / "target" / "release" / "examples" / "load"))
WINDOWS = 3
TOKENS = 128

IDENTITY = """
backend: "identity"
max_batch_size: 8
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""
LARGE_BYTES = 4 << 20
LARGE = IDENTITY.replace("max_batch_size: 8\n", "").replace("[ 16 ]", f"[ {LARGE_BYTES // 4} ]")
# How perf_analyzer reaches the server.
WAYS = {
    "grpc": ["-i", "grpc"],
    "stream": ["-i", "grpc", "--streaming"],
    "http": ["-i", "http"],
    "json": ["-i", "http", "--input-tensor-format", "json", "--output-tensor-format", "json"],
    "grpc-shm": ["-i", "grpc", "--shared-memory", "system"],
    "http-shm": ["-i", "http", "--shared-memory", "system"],
}


@dataclass
class Measured:
    """What one measurement found. CPU time is the server's, None where it is unknown."""

    per_second: float
    p50_ms: float
    p99_ms: float
    rows_per_execution: float
    cpu_us: float | None


def write_repository(folder, names):
    """The models to measure; `NAME_unbatched` is NAME without its batcher."""
    for name in names:
        source = ROOT / "model_repository" / name.removesuffix("_unbatched")
        (folder / name / "1").mkdir(parents=True)
        if name in ("identity", "large"):
            config = IDENTITY if name == "identity" else LARGE
        else:
            config = (source / "config.pbtxt").read_text()
            version = max((each for each in source.iterdir() if each.name.isdigit()), key=lambda each: int(each.name))
            shutil.copy(version / "model.pt", folder / name / "1" / "model.pt")
        if name.endswith("_unbatched"):
            config = without_block(config, "dynamic_batching")
        config = re.sub(r"^name:.*$", "", without_block(config, "version_policy"), flags=re.MULTILINE)
        (folder / name / "config.pbtxt").write_text(config)
    return list(names)


def without_block(config, name):
    """`config` without the message field `name` and everything in its braces."""
    found = re.search(rf"^{name}\s*:?\s*{{", config, re.MULTILINE)
    if not found:
        return config
    end, depth = found.end(), 1
    while depth:
        depth += {"{": 1, "}": -1}.get(config[end], 0)
        end += 1
    return config[: found.start()] + config[end:]


def analyze(server, model, way, concurrency, seconds, scratch):
    """Measures a closed loop by perf_analyzer, WINDOWS times `seconds`; RuntimeError says why it could not."""
    report = scratch / "report.csv"
    report.unlink(missing_ok=True)
    protocol = WAYS[way][1]
    command = [PERF_ANALYZER, "-m", model, *WAYS[way], "-u", getattr(server, protocol), "-f", report]
    command += ["--concurrency-range", str(concurrency), "-p", str(int(seconds * 1000)), "-r", str(WINDOWS), "-s", "999"]
    if model.startswith("minilm"):
        command += ["--input-data", str(write_tokens(scratch / "tokens.json"))]
    if model == "large":
        command += ["--output-shared-memory-size", str(LARGE_BYTES)]
    command += ["--async"] if concurrency > 1 and way != "stream" else []

    def measure():
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode != 0 or not report.exists():
            raise RuntimeError(f"perf_analyzer: {(ended.stderr or ended.stdout).strip().splitlines()[-1]}")
        with open(report, newline="") as lines:
            found = next(csv.DictReader(lines))
        return (float(found["Inferences/Second"]), float(found["p50 latency"]), float(found["p99 latency"]))

    return measured(server, model, measure)


def load(server, model, flags):
    """What our own load generator says, as its JSON; RuntimeError says why it could not."""
    command = [LOAD, "--json", "--grpc", server.grpc, "--model", model, "--size", str(TOKENS), *map(str, flags)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise RuntimeError((ended.stderr or ended.stdout).strip().splitlines()[-1])
    return json.loads(ended.stdout)


def measured(server, model, measure):
    """Adds to what `measure` finds (per second, p50 and p99 in microseconds) what the server counted meanwhile."""
    counts, cpu_s = server.counts(model), server.cpu_s()
    per_second, p50_us, p99_us = measure()
    requests, rows, executions = (now - then for now, then in zip(server.counts(model), counts))
    cpu_us = None if cpu_s is None else (server.cpu_s() - cpu_s) / max(requests, 1) * 1e6
    return Measured(per_second, p50_us / 1000, p99_us / 1000, rows / max(executions, 1), cpu_us)


def write_tokens(path):
    """One sentence of TOKENS pieces for perf_analyzer, the same at each run."""
    pieces = random.Random(1)
    ids = [101, *(pieces.randrange(1996, 30000) for _ in range(TOKENS - 2)), 102]
    tensors = {"input_ids": ids, "attention_mask": [1] * TOKENS}
    data = {name: {"content": values, "shape": [TOKENS]} for name, values in tensors.items()}
    path.write_text(json.dumps({"data": [data]}))
    return path


def machine():
    """The processor, and who shares it."""
    with open("/proc/cpuinfo") as lines:
        names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        return f"{next(names, 'unknown CPU')}, {os.cpu_count()} cores, shared with the load generator"
