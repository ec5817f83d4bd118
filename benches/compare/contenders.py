"""The servers that are compared, and the repository that each of them serves.

All serve the same model files under the same configurations; what differs is the line that names the backend. Begin at
`Contender`.
"""

import argparse
import functools
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import servers
import workloads

HERE = Path(__file__).resolve().parent
TRITON = workloads.ROOT / "third_party" / "triton"
BACKENDS = TRITON / "pytriton" / "tritonserver" / "backends"
# Preloaded, it makes MKL take its fast path on processors that are not Intel's.
MKL_FAST_PATH = TRITON / "libmkl_fast_path.so"
ATTACHED = "NAME:grpc=HOST:PORT,http=HOST:PORT[,pid=N]"
BACKEND = re.compile(r'^(?:platform: "pytorch_libtorch"|backend: "(\w+)")', re.MULTILINE)
CNN = """
platform: "pytorch_libtorch"
max_batch_size: 16
input [ { name: "image" data_type: TYPE_FP32 dims: [ 3, 224, 224 ] } ]
output [ { name: "classes" data_type: TYPE_FP32 dims: [ 1000 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
dynamic_batching { }
"""


@dataclass
class Contender:
    """A server that can be started with a repository; or, with `attached`, one that runs and serves it already."""

    name: str
    binary: Path | None = None
    # Triton only: a request that waits longer than this in a queue is refused.
    queue_timeout_ms: int | None = None
    attached: servers.Server | None = None
    environment: dict | None = None

    def start(self, models, scratch):
        """The server, ready, with `models`: folders of a repository that `write_models` wrote."""
        if self.attached:
            return self.attached
        repository = Path(scratch) / re.sub(r"\W+", "-", self.name)
        shutil.rmtree(repository, ignore_errors=True)
        (repository / "models").mkdir(parents=True)
        for model in models:
            shutil.copytree(model, repository / "models" / model.name, copy_function=link)
        if not self.binary:
            for model in models:
                self.adapt(repository / "models" / model.name)
        command = self.nereid if self.binary else self.triton
        command = functools.partial(command, repository / "models")
        return servers.start(self.name, command, repository / "log", self.environment)

    def nereid(self, repository, *ports):
        return servers.nereid(self.binary, repository, ["--allow-client-shm=true"], *ports)

    def triton(self, repository, grpc_port, http_port, metrics_port):
        """Triton as it comes, on the loopback address."""
        addresses = [f"--{each}-address={servers.LOOPBACK}" for each in ("grpc", "http", "metrics")]
        ports = [f"--grpc-port={grpc_port}", f"--http-port={http_port}", f"--metrics-port={metrics_port}"]
        return [TRITON / "tritonserver", f"--model-repository={repository}", *addresses, *ports]

    def adapt(self, model):
        """Turns a model into one that this Triton can serve: one of its python backend, if none in C is here."""
        config = (model / "config.pbtxt").read_text()
        if BACKEND.search(config)[1] == "identity":
            build_identity()
        else:
            shutil.copy(HERE / "python_backend" / "torchscript.py", model / "1" / "model.py")
            config = BACKEND.sub('backend: "python"', config)
        if self.queue_timeout_ms:
            timeout = f"timeout_action: REJECT default_timeout_microseconds: {self.queue_timeout_ms * 1000}"
            config = config.replace("dynamic_batching {", f"dynamic_batching {{ default_queue_policy {{ {timeout} }}")
        (model / "config.pbtxt").unlink()
        (model / "config.pbtxt").write_text(config)


@functools.cache
def build_identity():
    """Puts a backend in C that copies its inputs beside Triton's python backend."""
    folder = BACKENDS / "identity"
    folder.mkdir(exist_ok=True)
    source = HERE / "triton_backend" / "identity.c"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", folder / "libtriton_identity.so", source], check=True)


def link(source, target):
    """The same file, not another one: a second copy would cost the second server a cold start."""
    Path(target).hardlink_to(source)


def attached(text):
    """A contender from what ATTACHED says; its models must be those of `write_models`."""
    found = re.fullmatch(r"(?P<name>[^:]+):grpc=(?P<grpc>[^,]+),http=(?P<http>[^,]+)(,pid=(?P<pid>\d+))?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not {ATTACHED}")
    pid = int(found["pid"]) if found["pid"] else None
    return Contender(found["name"], attached=servers.Server(found["name"], found["grpc"], found["http"], pid))


def write_models(folder, names):
    """Writes the models that are compared, as any Triton with C++ backends would serve them; returns their folders."""
    known = [name for name in names if name != "cnn"]
    workloads.write_repository(folder, known)
    if "cnn" in names:
        (folder / "cnn" / "1").mkdir(parents=True)
        (folder / "cnn" / "config.pbtxt").write_text(CNN)
        subprocess.run([TRITON / "python", HERE / "cnn.py", folder / "cnn" / "1" / "model.pt"], check=True)
    return {name: folder / name for name in names}
