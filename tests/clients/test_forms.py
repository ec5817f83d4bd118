"""Ragged batches, optional inputs, padding by the server, reshapes and warm-up, over both protocols.

The models are TorchScript made for the tests, and minilm. Each model waits for as many requests as a test sends, so that
these are one batch for certain; the statistics tell.
"""

import shutil

import numpy as np
import pytest
from arrays import infer_at_once, tensor
from nereid import ROOT, Nereid, parameter, torchscript, write_model
from protocols import PROTOCOLS, connect
from tritonclient.utils import InferenceServerException

# Longer than any test takes to send its requests: a batch begins when it is full.
BATCHING = "dynamic_batching {{ preferred_batch_size: [ {rows} ] max_queue_delay_microseconds: 1000000 }}"

RAGGED = """
def forward(self, values, ends):
    sums = torch.cumsum(values, 0)[ends.long() - 1]
    before = torch.cat([torch.zeros([1]), sums[:-1]])
    return (sums - before).unsqueeze(1), values * 2
"""

OPTIONAL = """
def forward(self, x, plus: Optional[Tensor]=None, times: Optional[Tensor]=None):
    y = x
    if plus is not None:
        y = y + plus
    if times is not None:
        y = y * times
    return y
"""

PADDED = """
def forward(self, ids, mask):
    lengths = torch.ones_like(ids).sum(1, True)
    return (ids * mask).sum(1, True), torch.cumsum(ids, 1), lengths
"""


def padded_minilm(folder):
    """minilm as an embedder of texts of any length: ids are padded to multiples of 32, the mask comes from the server."""
    shutil.copytree(ROOT / "model_repository" / "minilm", folder / "minilm")
    config = folder / "minilm" / "config.pbtxt"
    text = config.read_text().replace("dynamic_batching { }", BATCHING.format(rows=4))
    text += parameter("padding.inputs", "input_ids") + parameter("padding.multiple", 32)
    config.write_text(text + parameter("padding.mask_input", "attention_mask"))
    plain = folder / "plain_minilm"
    shutil.copytree(ROOT / "model_repository" / "minilm", plain)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forms")
    torchscript(
        folder,
        "ragged",
        RAGGED,
        'max_batch_size: 8 input { name: "values" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true }\n'
        "batch_input { kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: 'ends' data_type: TYPE_INT32 "
        "source_input: 'values' }\n"
        'output [ { name: "sum" data_type: TYPE_FP32 dims: [ 1 ] }, { name: "twice" data_type: TYPE_FP32 dims: [ -1 ] } ]\n'
        "batch_output { target_name: 'twice' kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: 'values' }\n"
        + BATCHING.format(rows=4),
    )
    torchscript(
        folder,
        "optional",
        OPTIONAL,
        'max_batch_size: 4 input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] },\n'
        '{ name: "plus" data_type: TYPE_FP32 dims: [ 2 ] optional: true },\n'
        '{ name: "times" data_type: TYPE_FP32 dims: [ 2 ] optional: true } ]\n'
        'output { name: "y" data_type: TYPE_FP32 dims: [ 2 ] }\n' + BATCHING.format(rows=2),
    )
    torchscript(
        folder,
        "padded",
        PADDED,
        'max_batch_size: 8 input [ { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] },\n'
        '{ name: "mask" data_type: TYPE_INT64 dims: [ -1 ] } ]\n'
        'output [ { name: "sum" data_type: TYPE_INT64 dims: [ 1 ] }, { name: "running" data_type: TYPE_INT64 dims: [ -1 ] },\n'
        '{ name: "length" data_type: TYPE_INT64 dims: [ 1 ] } ]\n'
        + parameter("padding.inputs", "ids")
        + parameter("padding.buckets", "4, 16")
        + parameter("padding.value", 7)
        + parameter("padding.mask_input", "mask")
        + parameter("padding.outputs", "running")
        + BATCHING.format(rows=3),
    )
    counts = "".join(
        f"batch_input {{ kind: {kind} target_name: '{kind}' data_type: {dtype} source_input: 'x' }}\n"
        for kind, dtype in (("BATCH_ELEMENT_COUNT", "TYPE_INT32"), ("BATCH_ITEM_SHAPE", "TYPE_FP32"))
    )
    write_model(
        folder,
        "identity",
        'backend: "identity" max_batch_size: 4\n'
        'input { name: "x" data_type: TYPE_FP32 dims: [ -1, 2 ] allow_ragged_batch: true }\n'
        'output [ { name: "y" data_type: TYPE_FP32 dims: [ -1, 2 ] }, { name: "count" data_type: TYPE_INT32 dims: [ 1 ] '
        'reshape { shape: [ ] } }, { name: "item" data_type: TYPE_FP32 dims: [ 2 ] } ]\n'
        f"{counts}batch_output {{ target_name: 'y' source_input: 'x' }}\n" + BATCHING.format(rows=3),
    )
    write_model(
        folder,
        "reshaped",
        'backend: "identity" max_batch_size: 4\n'
        'input { name: "x" data_type: TYPE_FP32 dims: [ 2, -1, 2 ] format: FORMAT_NCHW '
        "reshape { shape: [ 1, 2, -1, 2 ] } }\n"
        'output { name: "y" data_type: TYPE_FP32 dims: [ 2, -1, 2 ] reshape { shape: [ 1, 2, -1, 2 ] } }\n',
    )
    padded_minilm(folder)
    return folder


@pytest.fixture(scope="module")
def server(repository):
    with Nereid(repository) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with connect("grpc", server) as connected:
        yield connected


@pytest.fixture(scope="module", params=PROTOCOLS)
def either(request, server):
    with connect(request.param, server) as connected:
        yield connected


class Counted:
    """What a model executed while this was open."""

    def __init__(self, client, model):
        self.client, self.model = client, model

    def __enter__(self):
        self.before = self.now()
        return self

    def __exit__(self, *_):
        self.inferences, self.executions = (after - was for after, was in zip(self.now(), self.before, strict=True))

    def now(self):
        (stats,) = self.client.get_inference_statistics(self.model).model_stats
        return int(stats.inference_count), int(stats.execution_count)


def floats(*rows):
    return np.array(rows, dtype=np.float32)


def test_requests_of_any_length_are_one_ragged_batch(client):
    sent = [floats([1, 2, 3]), floats([4]), floats([0.5, 0.5]), floats([1, 1, 1, 1, 1])]
    with Counted(client, "ragged") as counted:
        results = infer_at_once(client, "ragged", [[tensor("values", "FP32", values)] for values in sent])
    assert (counted.inferences, counted.executions) == (4, 1)
    for values, result in zip(sent, results, strict=True):
        assert result.as_numpy("sum") == pytest.approx(values.sum(axis=1, keepdims=True))
        assert (result.as_numpy("twice") == values * 2).all()


def test_one_ragged_request_is_a_batch_too(either):
    values = floats([1, 2, 3, 4])
    result = either.infer("ragged", [either.tensor("values", "FP32", values)])
    assert (result.as_numpy("twice") == values * 2).all()
    assert result.as_numpy("sum").tolist() == [[10]]


def test_the_identity_backend_sees_the_counts_and_shapes_of_a_ragged_batch(client):
    sent = [np.arange(2 * length, dtype=np.float32).reshape(1, length, 2) for length in (3, 1, 2)]
    with Counted(client, "identity") as counted:
        results = infer_at_once(client, "identity", [[tensor("x", "FP32", values)] for values in sent])
    assert (counted.inferences, counted.executions) == (3, 1)
    for values, result in zip(sent, results, strict=True):
        assert (result.as_numpy("y") == values).all()
        assert result.as_numpy("count").tolist() == [[values.size]]
        assert result.as_numpy("item").tolist() == [[values.shape[1], 2]]


@pytest.mark.parametrize(
    "given, expected",
    [({}, [1, 2]), ({"plus": [1, 1]}, [2, 3]), ({"times": [2, 2]}, [2, 4]), ({"times": [2, 2], "plus": [1, 1]}, [4, 6])],
)
def test_optional_inputs_may_be_left_out(either, given, expected):
    inputs = [either.tensor("x", "FP32", floats([1, 2]))]
    inputs += [either.tensor(name, "FP32", floats(values)) for name, values in given.items()]
    assert either.infer("optional", inputs).as_numpy("y").tolist() == [expected]


def test_only_requests_with_the_same_inputs_share_a_batch(client):
    x = tensor("x", "FP32", floats([1, 2]))
    plus = tensor("plus", "FP32", floats([1, 1]))
    with Counted(client, "optional") as counted:
        results = infer_at_once(client, "optional", [[x], [x, plus], [x, plus], [x]])
    assert (counted.inferences, counted.executions) == (4, 2)
    assert [result.as_numpy("y").tolist() for result in results] == [[[1, 2]], [[2, 3]], [[2, 3]], [[1, 2]]]


def test_an_input_that_must_be_there_is_missed(either):
    with pytest.raises(InferenceServerException) as raised:
        either.infer("optional", [either.tensor("plus", "FP32", floats([1, 1]))])
    assert raised.value.status() == either.status("INVALID_ARGUMENT")
    expected = "expected number of inputs between 1 and 3 but got 1 inputs for model 'optional'"
    assert expected in raised.value.message() and "missing required input(s) ['x']" in raised.value.message()


def longs(*rows):
    return np.array(rows, dtype=np.int64)


def test_mixed_lengths_are_padded_to_one_batch_and_cut_back(client):
    sent = [longs([1, 2, 3]), longs([5]), longs([1, 1, 1, 1])]
    with Counted(client, "padded") as counted:
        results = infer_at_once(client, "padded", [[tensor("ids", "INT64", ids)] for ids in sent])
    assert (counted.inferences, counted.executions) == (3, 1)
    for ids, result in zip(sent, results, strict=True):
        assert result.as_numpy("sum").tolist() == [[ids.sum()]]
        assert (result.as_numpy("running") == np.cumsum(ids, axis=1)).all()
        assert result.as_numpy("length").tolist() == [[4]], "the model saw the length of the bucket"


@pytest.mark.parametrize("length, bucket", [(5, 16), (16, 16), (17, 17)])
def test_a_length_goes_into_its_bucket_and_one_beyond_stays(either, length, bucket):
    ids = np.ones((2, length), dtype=np.int64)
    result = either.infer("padded", [either.tensor("ids", "INT64", ids)])
    assert result.as_numpy("length").tolist() == [[bucket]] * 2
    assert result.as_numpy("sum").tolist() == [[length]] * 2
    assert result.as_numpy("running").shape == (2, length)


def test_a_mask_of_the_callers_own_counts_and_must_be_of_the_same_length(either):
    ids = longs([1, 2, 3])
    mask = longs([1, 0, 1])
    inputs = [either.tensor("ids", "INT64", ids), either.tensor("mask", "INT64", mask)]
    assert either.infer("padded", inputs).as_numpy("sum").tolist() == [[4]]
    inputs[1] = either.tensor("mask", "INT64", mask[:, :2])
    with pytest.raises(InferenceServerException, match="as long as what it masks"):
        either.infer("padded", inputs)


def test_minilm_embeds_mixed_lengths_in_one_batch_as_it_does_alone(client):
    random = np.random.default_rng(7)
    sent = [random.integers(1000, 20000, (1, length)) for length in (5, 31, 12, 20)]
    with Counted(client, "minilm") as counted:
        results = infer_at_once(client, "minilm", [[tensor("input_ids", "INT64", ids)] for ids in sent])
    assert (counted.inferences, counted.executions) == (4, 1)
    for ids, result in zip(sent, results, strict=True):
        inputs = [tensor("input_ids", "INT64", ids), tensor("attention_mask", "INT64", np.ones_like(ids))]
        alone = client.infer("plain_minilm", inputs).as_numpy("embedding")
        assert np.abs(result.as_numpy("embedding") - alone).max() <= 1e-5


def test_a_reshape_is_undone_in_the_answer(either):
    sent = np.arange(24, dtype=np.float32).reshape(2, 2, 3, 2)
    received = either.infer("reshaped", [either.tensor("x", "FP32", sent)]).as_numpy("y")
    assert received.shape == sent.shape and (received == sent).all()


@pytest.mark.parametrize(
    "source, said",
    [
        ("def forward(self, x, y):\n    return x + y\n", "input 'y' is optional in the configuration, but argument 'y: Tensor'"),
        ("def forward(self, x, y: Optional[Tensor]):\n    return x.reshape([7, 7])\n", "failed to run warmup sample 'pairs': "),
    ],
)
def test_a_model_that_cannot_do_what_its_configuration_says_does_not_load(tmp_path, source, said):
    config = (
        'input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }, { name: "y" data_type: TYPE_FP32 dims: [ 2 ] optional: true } ]\n'
        'output { name: "z" data_type: TYPE_FP32 dims: [ 2 ] } max_batch_size: 4\n'
        "model_warmup { name: 'pairs' batch_size: 2 inputs { key: 'x' value { data_type: TYPE_FP32 dims: [ 2 ] "
        "random_data: true } } }\n"
    )
    torchscript(tmp_path, "unfit", source, config)
    with Nereid(tmp_path, "--exit-on-error=false") as server, connect("grpc", server) as client:
        (entry,) = client.get_model_repository_index().models
        assert entry.state == "UNAVAILABLE" and said in entry.reason
