"""What the long trials of a server share: models made on the spot, the server's counters, and its memory over time."""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "clients"))

from nereid import BINARY, write_model  # noqa: E402

SAMPLE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def torch_model(repository, name, source, config, version=1):
    """Writes a TorchScript model from the source of its `forward`."""
    folder = Path(repository) / name
    (folder / str(version)).mkdir(parents=True, exist_ok=True)
    compile_torch(source, folder / str(version) / "model.pt")
    (folder / "config.pbtxt").write_text(config)
    return folder


def compile_torch(source, path):
    """Writes a TorchScript file all at once, as a careful operator would."""
    with tempfile.TemporaryDirectory(dir=Path(path).parent.parent, prefix=".") as scratch:
        (Path(scratch) / "source.py").write_text(source)
        made = Path(scratch) / "model.pt"
        subprocess.run([BINARY, "torchscript", Path(scratch) / "source.py", made], check=True, stdout=subprocess.DEVNULL)
        made.rename(path)


def identity_model(repository, name, extra="", max_batch_size=8, dtype="FP32", dims="16", versions=(1,)):
    """Writes an identity model of one tensor."""
    config = (
        f'backend: "identity"\nmax_batch_size: {max_batch_size}\n'
        f'input [ {{ name: "INPUT0" data_type: TYPE_{dtype} dims: [ {dims} ] }} ]\n'
        f'output [ {{ name: "OUTPUT0" data_type: TYPE_{dtype} dims: [ {dims} ] }} ]\n'
        f"instance_group [ {{ count: 1 kind: KIND_CPU }} ]\n{extra}\n"
    )
    return write_model(repository, name, config, versions)


def delay(microseconds):
    """The parameter that makes an identity model slow."""
    return f'parameters {{ key: "identity.delay_us" value {{ string_value: "{microseconds}" }} }}'


class Counters:
    """The server's counters at one moment."""

    def __init__(self, url):
        with urllib.request.urlopen(url, timeout=30) as response:
            text = response.read().decode()
        self.samples = []
        for line in text.splitlines():
            found = SAMPLE.match(line)
            if found:
                labels = dict(LABEL.findall(found["labels"] or ""))
                self.samples.append((found["name"], labels, float(found["value"])))

    def total(self, name, **labels):
        """The sum of all series of this name that have these labels."""
        fits = [value for own, has, value in self.samples if own == name and labels.items() <= has.items()]
        return round(sum(fits))


class Memory:
    """Samples a process's resident memory until it is asked what came out."""

    def __init__(self, pid, interval_s=0.5):
        self.pid, self.interval_s = pid, interval_s
        self.samples, self.ended = [], threading.Event()
        self.began = time.monotonic()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self):
        while not self.ended.wait(self.interval_s):
            self.samples.append((time.monotonic() - self.began, resident(self.pid)))

    def stop(self):
        self.ended.set()
        self.thread.join()


def resident(pid):
    """Resident bytes of a process; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def slope(samples):
    """The growth by least squares: units of the second value for each unit of the first."""
    if len(samples) < 2:
        return 0.0
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread if spread else 0.0


def mib(bytes_):
    return f"{bytes_ / (1 << 20):.1f} MiB"
