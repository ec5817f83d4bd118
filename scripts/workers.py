"""The kinds of work of the soak: each has its models, its requests, and what they must lead to.

`KINDS` are all of them.
"""

import contextlib
import itertools
import json
import queue
import subprocess
import time

from trial import LOAD, delay, identity_model, torch_config, torch_model
from worker import LOST_AFTER_S, Worker

import numpy as np  # noqa: E402
import tritonclient.utils.shared_memory as shared_memory  # noqa: E402
from configs import REPEAT, chain, countdown, ensemble, repeated, step  # noqa: E402
from nereid import identity_config, parameter, write_model  # noqa: E402
from queues import WAYS, Flight  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

DYNAMIC = "dynamic_batching { }\n"
OLDEST = "oldest { max_candidate_sequences: 64 }"


class Echo(Worker):
    """Dynamic batching."""

    model = "dynamic"

    @classmethod
    def write(cls, folder):
        identity_model(folder, cls.model, DYNAMIC)

    def work(self):
        array = self.array()
        self.ask([self.tensor("INPUT0", array)], {"OUTPUT0": array})


class Compressed(Echo):
    """Requests of any size, compressed."""

    model = "compressed"

    @classmethod
    def write(cls, folder):
        write_model(folder, cls.model, identity_config(["FP32"], 8, dims="-1", extra=DYNAMIC))

    def array(self):
        # Few different values, as compress well.
        length = int(2 ** self.random.uniform(0, 18))
        return self.numbers.integers(0, 4, (1, length)).astype(np.float32)

    def ask(self, inputs, expected):
        option = "compression_algorithm" if self.protocol == "grpc" else "request_compression_algorithm"
        return super().ask(inputs, expected, **{option: self.random.choice(["gzip", "deflate"])})


class Cached(Echo):
    """A few inputs again and again."""

    model = "cached"

    @classmethod
    def write(cls, folder):
        identity_model(folder, cls.model, f"{DYNAMIC}response_cache {{ enable: true }}\n{delay(1000)}")

    def array(self):
        return np.full((1, 16), self.random.randint(0, 7), np.float32)


class Priority(Echo):
    """More than the model can do, so that queue timeouts act."""

    model = "priority"
    expected = ("Request timeout expired", "Exceeds maximum queue size")
    CONFIG = """
dynamic_batching {
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy {
    timeout_action: REJECT default_timeout_microseconds: 300000 allow_timeout_override: true max_queue_size: 16
  }
}
"""

    @classmethod
    def write(cls, folder):
        identity_model(folder, cls.model, cls.CONFIG + delay(4000), max_batch_size=2)

    def ask(self, inputs, expected):
        timeout = self.random.choice([None, 1000, 100_000])
        return super().ask(inputs, expected, priority=self.random.randint(0, 3), timeout=timeout)


class Torch(Worker):
    """A TorchScript model on two instances."""

    model = "torch"
    SOURCE = "def forward(self, INPUT0: Tensor, INPUT1: Tensor) -> Tensor:\n    return INPUT0 + INPUT1\n"
    INPUTS = ("INPUT0", "INPUT1")
    OUTPUT = "OUTPUT0"

    @classmethod
    def write(cls, folder):
        torch_model(folder, cls.model, cls.SOURCE, torch_config(cls.INPUTS, [cls.OUTPUT], instances=2) + DYNAMIC)

    def work(self):
        arrays = [self.array(), self.array()]
        inputs = [self.tensor(name, array) for name, array in zip(self.INPUTS, arrays)]
        self.ask(inputs, {self.OUTPUT: sum(arrays)})


class Misshapen(Worker):
    """Inputs of any two lengths, which fit each other now and then, for a model that is optimised."""

    model = "misshapen"
    expected = ("The size of tensor a",)
    # It fails within a method, which freezing puts into the one that calls it.
    SOURCE = """def add(self, one: Tensor, other: Tensor) -> Tensor:
    return torch.relu(one + other)

def forward(self, INPUT0: Tensor, INPUT1: Tensor) -> Tensor:
    return self.add(INPUT0, INPUT1)
"""

    @classmethod
    def write(cls, folder):
        config = torch_config(Torch.INPUTS, [Torch.OUTPUT], dims=-1, instances=2)
        torch_model(folder, cls.model, cls.SOURCE, config + DYNAMIC + parameter("torch.optimize", "freeze"))

    def work(self):
        lengths = [self.random.choice([0, 1, 2, 7, 8, 9, 64, 65]) for _ in Torch.INPUTS]
        arrays = [self.numbers.random((1, length), dtype=np.float32) for length in lengths]
        fit = lengths[0] == lengths[1] or 1 in lengths
        inputs = [self.tensor(name, array) for name, array in zip(Torch.INPUTS, arrays)]
        if self.ask(inputs, {Torch.OUTPUT: sum(arrays)} if fit else {}) != fit:
            self.tally.wrong.append(f"{self.name}: lengths {lengths}")


class Ensemble(Torch):
    """Two members, one of which is reloaded now and then."""

    model = "ensemble"
    members = ("member_echo", "member_add")
    INPUTS, OUTPUT = ("A", "B"), "SUM"

    @classmethod
    def write(cls, folder):
        identity_model(folder, "member_echo", DYNAMIC)
        torch_model(folder, "member_add", cls.SOURCE, torch_config(Torch.INPUTS, [Torch.OUTPUT]) + DYNAMIC)
        steps = [
            step("member_echo", {"INPUT0": "A"}, {"OUTPUT0": "echoed"}),
            step("member_add", {"INPUT0": "echoed", "INPUT1": "B"}, {"OUTPUT0": "SUM"}),
        ]
        write_model(folder, cls.model, ensemble(cls.INPUTS, [cls.OUTPUT], steps, max_batch_size=8, dims="16"))

    def work(self):
        if self.protocol == "http" and self.random.random() < 0.02:
            config = self.client.get_model_config("member_echo")
            # Something that needs another copy.
            config["parameters"] = {"seen": {"string_value": str(self.random.random())}}
            self.client.load_model("member_echo", config=json.dumps(config))
        super().work()


class Sequence(Worker):
    """Sequences of all lengths, with numbers and with names; some are never ended."""

    model, strategy = "sum_oldest", OLDEST
    # The sum so far is the state; it starts anew with each sequence.
    SOURCE = """def forward(self, INPUT: Tensor, SUM: Tensor) -> Tuple[Tensor, Tensor]:
    total = INPUT + SUM
    return (total, total)
"""
    STATE = """
sequence_batching {{
  max_sequence_idle_microseconds: 5000000
  {strategy}
  state [ {{
    input_name: "SUM" output_name: "SUM_OUT" data_type: TYPE_FP32 dims: [ 1 ]
    initial_state {{ name: "zero" data_type: TYPE_FP32 dims: [ 1 ] zero_data: true }}
  }} ]
}}
"""

    @classmethod
    def write(cls, folder):
        config = torch_config(["INPUT"], ["OUTPUT"], dims=1) + cls.STATE.format(strategy=cls.strategy)
        torch_model(folder, cls.model, cls.SOURCE, config)

    def work(self):
        sequence = self.random.choice([self.random.randrange(1, 1 << 63), f"{self.name}-{self.random.random()}"])
        length, total = self.random.randint(1, 12), np.float32(0)
        abandoned = self.random.random() < 0.05
        for at in range(length):
            value = np.float32(self.random.randint(-100, 100))
            total += value
            flags = {"sequence_start": at == 0, "sequence_end": at == length - 1 and not abandoned}
            inputs = [self.tensor("INPUT", np.full((1, 1), value))]
            if not self.ask(inputs, {"OUTPUT": np.full((1, 1), total)}, sequence_id=sequence, **flags):
                return


class Direct(Sequence):
    """The same with a place in the batch for each sequence."""

    model, strategy = "sum_direct", "direct { }"


class Iterative(Worker):
    """Requests that are executed several times."""

    model = "iterative"

    @classmethod
    def write(cls, folder):
        write_model(folder, cls.model, countdown())

    def work(self):
        steps = np.full((1, 1), self.random.randint(1, 5), np.int32)
        self.ask([self.tensor("IN", steps, "INT32")], {"OUT": np.zeros((1, 1), np.int32)})


class Stream(Worker):
    """Requests with many responses, several at a time on one stream."""

    model = "stream"
    protocols = ("grpc",)

    @classmethod
    def write(cls, folder):
        write_model(folder, cls.model, REPEAT)

    def begin(self):
        self.responses = queue.Queue()
        self.client.start_stream(lambda result, error: self.responses.put((result, error)))

    def work(self):
        wanted = {}
        for _ in range(4):
            values = self.numbers.integers(-9, 9, self.random.randint(1, 6), dtype=np.int32)
            name = f"{self.tally.sent}"
            inputs = [self.tensor(each, array, dtype) for each, (dtype, array) in repeated(values, [0] * len(values)).items()]
            self.client.async_stream_infer(self.model, inputs, request_id=name, enable_empty_final_response=True)
            self.tally.sent += 1
            wanted[name] = list(values)
        while wanted:
            try:
                result, error = self.responses.get(timeout=LOST_AFTER_S)
            except queue.Empty:
                self.tally.lost += len(wanted)
                return
            if error:
                self.refused(error.message())
                return
            response = result.get_response()
            if response.outputs:
                expected = wanted[response.id].pop(0) if wanted.get(response.id) else None
                self.check(result.as_numpy("OUT"), np.array([expected]))
            if response.parameters["triton_final_response"].bool_param:
                if wanted.pop(response.id):
                    self.tally.wrong.append(f"{self.name}: the final response came too early")
                self.tally.answered += 1

    def end(self):
        self.client.stop_stream()


class Shared(Echo):
    """Inputs and outputs in shared memory."""

    model = "shared"

    def begin(self):
        self.regions = []
        for part in ("in", "out"):
            name = f"soak-{self.protocol}-{part}-{self.server.process.pid}"
            region = shared_memory.create_shared_memory_region(name, f"/{name}", 64)
            self.client.register_system_shared_memory(name, f"/{name}", 64)
            self.regions.append((name, region))

    def work(self):
        array, ((source, region), (target, result)) = self.array(), self.regions
        shared_memory.set_shared_memory_region(region, [array])
        sent = self.module.InferInput("INPUT0", [1, 16], "FP32")
        sent.set_shared_memory(source, 64)
        wanted = self.module.InferRequestedOutput("OUTPUT0")
        wanted.set_shared_memory(target, 64)
        if self.ask([sent], {}, outputs=[wanted]):
            self.check(shared_memory.get_contents_as_numpy(result, np.float32, [1, 16]), array)

    def end(self):
        for name, region in self.regions:
            self.client.unregister_system_shared_memory(name)
            shared_memory.destroy_shared_memory_region(region)


class GivenUp(Worker):
    """Requests that are cancelled at any moment, or late for their callers or in the queue; each chooses its way.

    Who ends a call itself does not know whether its request reached the server first."""

    model = "given_up"
    expected = ("cancelled", "late", "Request timeout expired", "Exceeds maximum queue size")
    sequences = itertools.count(1)
    extra, decoupled, sequence = DYNAMIC, False, False

    @classmethod
    def write(cls, folder):
        identity_model(folder, cls.model, cls.extra + delay(10_000))

    def inputs(self):
        return {"INPUT0": ("FP32", self.array())}

    def work(self):
        options = self.random.choice([{}, {"seconds": self.random.uniform(0.002, 0.05)}, {"timeout": 5000}])
        if self.sequence:
            options |= {"sequence_id": next(self.sequences), "sequence_start": True, "sequence_end": True}
        ways = [way for way in WAYS if way != "grpc" or not self.decoupled]
        flight = Flight(self.random.choice(ways), self.server)
        self.tally.sent += 1
        self.tally.unsure += 1
        with contextlib.closing(flight):
            flight.send("one", self.model, inputs=self.inputs(), decoupled=self.decoupled, **options)
            if self.random.random() < 0.5:
                time.sleep(self.random.random() * 0.02)
                flight.cancel("one")
            try:
                ((_, outcome),) = flight.ends(1)
            except queue.Empty:
                self.tally.lost += 1
                return
        if outcome == "answered":
            self.tally.answered += 1
        else:
            self.refused(outcome)


class GivenUpSequence(GivenUp):
    """The same in sequences."""

    model, sequence = "given_up_sequence", True
    extra = f"sequence_batching {{ {OLDEST} }}\n"


class GivenUpIterative(GivenUp):
    """The same between the executions of one request."""

    model = "given_up_iterative"

    @classmethod
    def write(cls, folder):
        write_model(folder, cls.model, countdown(delay_us=3000))

    def inputs(self):
        return {"IN": ("INT32", np.full((1, 1), 4, np.int32))}


class GivenUpEnsemble(GivenUp):
    """The same between the steps of an ensemble."""

    model = "given_up_ensemble"

    @classmethod
    def write(cls, folder):
        names = [f"{cls.model}_{number}" for number in (1, 2)]
        for name in names:
            identity_model(folder, name, DYNAMIC + delay(5000))
        config = chain(names, max_batch_size=8, dims="16", extra=parameter("ensemble.requests_max", 2))
        write_model(folder, cls.model, config)


class GivenUpStream(GivenUp):
    """The same between the responses of one request."""

    model, decoupled = "given_up_stream", True

    @classmethod
    def write(cls, folder):
        write_model(folder, cls.model, REPEAT)

    def inputs(self):
        return repeated(range(4), [3] * 4)


class Swapped(Worker):
    """Uses a model that is swapped meanwhile: whatever answers is one of its forms."""

    model = "swapped"
    expected = ("unknown model", "is not at ready state")
    FORMS = 3
    SOURCE = "def forward(self, INPUT0: Tensor) -> Tensor:\n    return INPUT0 + {constant}.0\n"

    @classmethod
    def form(cls, folder, constant):
        """The file of a form, which waits beside the repository until it is used."""
        return folder.parent / f"swapped-{constant}.pt"

    @classmethod
    def write(cls, folder):
        for constant in range(cls.FORMS):
            source, config = cls.SOURCE.format(constant=constant), torch_config(["INPUT0"], ["OUTPUT0"]) + DYNAMIC
            made = torch_model(folder, cls.model, source, config) / "1" / "model.pt"
            cls.form(folder, constant).write_bytes(made.read_bytes())

    def work(self):
        array = self.array()
        self.tally.sent += 1
        try:
            result = self.client.infer(self.model, [self.tensor("INPUT0", array)])
        except InferenceServerException as error:
            self.refused(error.message())
            time.sleep(0.01)
            return
        self.tally.answered += 1
        self.check(result.as_numpy("OUTPUT0"), *(array + np.float32(constant) for constant in range(self.FORMS)))


class Swapping(Swapped):
    """Loads, reloads and unloads that model; after each load it is the new one."""

    protocols = ("http",)
    constant = 0

    def work(self):
        file = self.server.repository / self.model / "1" / "model.pt"
        for _ in range(3):
            self.constant = (self.constant + 1) % self.FORMS
            file.write_bytes(self.form(self.server.repository, self.constant).read_bytes())
            self.client.load_model(self.model)
            for _ in range(3):
                array = self.array()
                self.ask([self.tensor("INPUT0", array)], {"OUTPUT0": array + np.float32(self.constant)})
        self.client.unload_model(self.model)
        time.sleep(0.05)


class Flood(Worker):
    """Our own load generator, which sends far more than Python can, and more than the model does, with deadlines."""

    model = "flood"
    protocols = ("grpc",)
    extra = "dynamic_batching { default_queue_policy { max_queue_size: 16 } }\n"

    @classmethod
    def write(cls, folder):
        identity_model(folder, cls.model, cls.extra + delay(10_000), max_batch_size=4)

    def connect(self):
        return contextlib.nullcontext()

    def work(self):
        arguments = ["--grpc", self.server.grpc, "--model", self.model, "--rate", "500", "--deadline-ms", "100"]
        command = [LOAD, *arguments, "--seconds", str(self.seconds), "--warmup", "0", "--json"]
        report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        self.tally.sent += report["sent"]
        self.tally.answered += report["answered"]
        self.tally.refused.update(report["failed"])
        self.tally.unsure += 1
        self.ended.wait()


GIVEN_UP = [GivenUp, GivenUpSequence, GivenUpIterative, GivenUpEnsemble, GivenUpStream]
KINDS = [Echo, Compressed, Cached, Priority, Priority, Torch, Misshapen, Ensemble, Sequence, Direct, Iterative, Stream]
KINDS += [Shared, *GIVEN_UP, Swapped, Swapping, Flood]
