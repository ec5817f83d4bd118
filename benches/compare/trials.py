"""What is done to the servers: starts, closed loops, open loops. Each trial yields results; begin at `Trials`.

The servers take turns within each round, and the order is turned round from one round to the next. While one is asked
the others are there and idle. A start is measured alone.
"""

import contextlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import agreement
import workloads

STARTS = {"nothing": [], "add_sub": ["add_sub"], "minilm": ["minilm"]}
# Ways and concurrencies of each model in a closed loop.
CLOSED = {
    "identity": (("grpc", "http"), (1, 16, 64)),
    "add_sub": (("grpc",), (1, 16, 64)),
    "large": (("grpc", "http", "grpc-shm", "http-shm"), (1, 4)),
    "minilm_unbatched": (("grpc",), (1, 4, 16, 64)),
    "minilm": (("grpc",), (1, 4, 16, 64)),
    "cnn": (("grpc",), (1, 4, 16)),
}
# Sums in another order differ by less, other models by more.
APART_MAX = 1e-3
OPEN = "minilm"
BUDGET_MS = 100
PATTERNS = ("constant", "poisson", "bursty", "step")
# What is offered, as parts of the capacity that the server itself has shown.
PARTS = (0.5, 0.8, 1.0, 1.25, 1.5)
# The part at which latencies are compared, and how many times as long: a 99th percentile needs many requests.
CALM = 0.8
CALM_TIMES = 4
CAPACITY_CONCURRENCY = 16
# Queue timeouts that Triton is tuned with; the best one takes part in the open loops.
TIMEOUTS_MS = (30, 40, 60, 100)


@dataclass
class Result:
    """One measurement. `what` says in words what was done; `values` may lack what is unknown."""

    trial: str
    what: tuple
    server: str
    values: dict


class Trials:
    """All trials of `contenders` with `models`, a folder by name; `seconds` is the length of one window."""

    def __init__(self, contenders, models, scratch, seconds, rounds):
        self.contenders, self.models, self.scratch = contenders, models, Path(scratch)
        self.seconds, self.rounds = seconds, rounds

    def starts(self):
        """Time to live and to ready, and memory then."""
        for name, needed in STARTS.items():
            for number in range(self.rounds):
                for contender in self.turns([each for each in self.contenders if not each.attached], number):
                    with contender.start([self.models[each] for each in needed], self.scratch) as server:
                        values = {"live ms": server.live_s * 1e3, "ready ms": server.ready_s * 1e3, "MiB": mib(server)}
                        yield Result("start", (name,), server.name, values)

    def closed(self, names):
        """Closed loops by perf_analyzer."""
        for name in names:
            with self.running(self.contenders, name) as running:
                apart = agreement.difference(running, name)
                if apart > APART_MAX:
                    raise RuntimeError(f"{name}: the servers' answers differ by {apart:.1%} of the largest number")
                ways, concurrencies = CLOSED[name]
                for what in ((way, concurrency) for way in ways for concurrency in concurrencies):
                    for number in range(self.rounds):
                        for server in self.turns(running, number):
                            yield from self.analyze(server, name, *what)
                for server in running:
                    yield Result("memory", (name,), server.name, {"MiB": mib(server)})

    def analyze(self, server, name, way, concurrency):
        try:
            found = workloads.analyze(server, name, way, concurrency, self.seconds, self.scratch)
        except RuntimeError as error:
            print(f"{server.name}: {name} {way} {concurrency}: {error}", file=sys.stderr)
            yield Result("closed", (name, way, concurrency), server.name, {})
            return
        values = {"per s": found.per_second, "p50 ms": found.p50_ms, "p99 ms": found.p99_ms, "CPU us": found.cpu_us}
        yield Result("closed", (name, way, concurrency), server.name, values)

    def calm(self):
        """Open loops without deadlines: at a part of each server's own capacity, and at the same rate for all."""
        with self.running(self.contenders, OPEN) as running:
            capacities = {server.name: self.capacity(server) for server in running}
            same = dict.fromkeys(capacities, min(capacities.values()))
            for whose, capacity in (("its own", capacities), ("the least", same)):
                for number in range(self.rounds):
                    for server in self.turns(running, number):
                        load = "poisson", CALM, capacity[server.name]
                        values = self.offer(server, *load, number, told=False, times=CALM_TIMES)
                        yield Result("calm", (OPEN, "poisson", f"{CALM} of {whose}"), server.name, values)

    def open(self, tunable=None):
        """Open loops of requests that are worth something for BUDGET_MS only; `tunable` makes a Triton of a timeout."""
        contenders = list(self.contenders)
        if tunable:
            contenders.append(self.tune(tunable))
        with self.running(contenders, OPEN) as running:
            capacities = {server.name: self.capacity(server) for server in running}
            for name, capacity in capacities.items():
                yield Result("capacity", (OPEN,), name, {"per s": capacity})
            for pattern in PATTERNS:
                for part in PARTS:
                    for number in range(self.rounds):
                        for server in self.turns(running, number):
                            values = self.offer(server, pattern, part, capacities[server.name], number)
                            yield Result("open", (OPEN, pattern, part), server.name, values)

    def tune(self, tunable):
        """The Triton of TIMEOUTS_MS that answers most in time at the highest constant rate."""
        found = {}
        for timeout_ms in TIMEOUTS_MS:
            with self.running([tunable(timeout_ms)], OPEN) as (server,):
                found[timeout_ms] = self.offer(server, "constant", PARTS[-1], self.capacity(server), 0)["in time/s"]
        said = ", ".join(f"{timeout_ms} ms: {goodput:.1f}" for timeout_ms, goodput in found.items())
        print(f"in time per s by queue timeout: {said}", file=sys.stderr)
        return tunable(max(found, key=found.get))

    def capacity(self, server):
        """Answers per second of a closed loop."""
        flags = ["--concurrency", CAPACITY_CONCURRENCY, "--seconds", self.seconds * workloads.WINDOWS]
        return workloads.load(server, OPEN, flags)["per_second"]

    def offer(self, server, pattern, part, capacity, seed, told=True, times=1):
        """What came of requests at `part` of `capacity`, whose deadline the server is told or not, in so many windows."""
        rate = part * capacity
        flags = ["--warmup", 0, "--rate", rate, "--arrivals", pattern, "--seed", seed + 1]
        flags += ["--deadline-ms" if told else "--budget-ms", BUDGET_MS]
        cpu_s = server.cpu_s()
        said = workloads.load(server, OPEN, [*flags, "--seconds", self.seconds * workloads.WINDOWS * times])
        in_time, answered = said["goodput_per_second"], said["answered"]
        # The server's own refusals; the others are this client's, which waited for nothing.
        own = {reason for reason in said["failed"] if ": " in reason and not reason.startswith("connection")}
        refused = [said["failed_p99_us"][reason] for reason in own]
        return {
            "offered/s": rate,
            "in time/s": in_time,
            "in time, % of capacity": 100 * in_time / capacity,
            "late %": 100 * (1 - in_time * said["seconds"] / said["sent"]) if said["sent"] else None,
            "p50 ms": said["p50_us"] / 1e3 if answered else None,
            "p99 ms": said["p99_us"] / 1e3 if answered else None,
            "refused p99 ms": max(refused) / 1e3 if refused else None,
            "CPU us": (server.cpu_s() - cpu_s) * 1e6 / answered if answered and cpu_s is not None else None,
        }

    @contextlib.contextmanager
    def running(self, contenders, name):
        """The servers of `contenders`, with one model."""
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(each.start([self.models[name]], self.scratch)) for each in contenders]

    @staticmethod
    def turns(each, number):
        """Everybody once, in an order that changes with the round."""
        return list(each) if number % 2 == 0 else list(reversed(each))


def mib(server):
    memory = server.memory()
    return None if memory is None else memory / (1 << 20)


def as_json(results):
    return [asdict(each) for each in results]
