"""The real embedding model: its numbers against an independent encoder, and its sense against our own sentences."""

import shutil

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from arrays import infer_at_once, tensor
from encoder import Encoder
from nereid import ROOT, Nereid
from tokenizers import Tokenizer

WEIGHTS = ROOT / "third_party" / "minilm"
TOLERANCE = 1e-5

SENTENCES = [
    "The harbour was full of small blue boats.",
    "Rain.",
    "She fixed the old radio with a piece of wire and a great deal of patience, and it played until the morning.",
    "Ünïcödé wörds, numbers like 3.14 and 42, e-mail@example.org, and a word as long as antidisestablishmentarianism!",
    "",
    "Compilers translate programs into machine code.",
]

# Two sentences that say the same thing, and one that says something else about as many words.
TRIPLES = [
    ("A cat sleeps on the sofa.", "A kitten naps on the couch.", "The bank raised its interest rates."),
    ("How do I reset my password?", "I forgot my login and need a new one.", "Which wine goes with fish?"),
    ("The train to Lyon is late.", "The rail service to Lyon has been delayed.", "He painted the fence green."),
    ("She bought a new car last week.", "Last week she purchased an automobile.", "Mushrooms grow in damp forests."),
    ("The film was boring and too long.", "I found the movie dull and drawn out.", "Add two eggs to the flour."),
    ("Turn off the lights before you leave.", "Switch the lamps off when you go out.", "Whales are mammals."),
    ("The team won the final by two goals.", "They were victorious in the last match.", "The soup needs more salt."),
    ("Doctors advise drinking more water.", "Physicians recommend staying hydrated.", "The violin has four strings."),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("minilm")
    shutil.copytree(ROOT / "model_repository" / "minilm", folder / "minilm")
    with Nereid(folder) as server, grpcclient.InferenceServerClient(server.grpc) as connected:
        yield connected


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))


@pytest.fixture(scope="module")
def tokens(tokenizer):
    """Ids and mask of all SENTENCES, filled up to the longest."""
    tokenizer.enable_padding()
    return as_arrays(tokenizer.encode_batch(SENTENCES))


@pytest.fixture(scope="module")
def expected(tokens):
    """What the independent encoder makes of SENTENCES."""
    return Encoder(WEIGHTS / "model.safetensors").embed(*tokens)


def as_arrays(encoded):
    ids = np.array([each.ids for each in encoded], dtype=np.int64)
    mask = np.array([each.attention_mask for each in encoded], dtype=np.int64)
    return ids, mask


def inputs(ids, mask):
    return [tensor("input_ids", "INT64", ids), tensor("attention_mask", "INT64", mask)]


def embed(client, ids, mask):
    return client.infer("minilm", inputs(ids, mask)).as_numpy("embedding")


def test_a_padded_batch_equals_the_independent_encoder(client, tokens, expected):
    embeddings = embed(client, *tokens)
    assert (embeddings.dtype, embeddings.shape) == (np.float32, (len(SENTENCES), 384))
    assert np.abs(embeddings - expected).max() <= TOLERANCE


def test_single_unpadded_sentences_equal_the_independent_encoder(client, tokens, expected):
    for ids, mask, wanted in zip(*tokens, expected, strict=True):
        kept = mask == 1
        embedding = embed(client, ids[None, kept], mask[None, kept])
        assert np.abs(embedding[0] - wanted).max() <= TOLERANCE


def test_padding_to_the_longest_length_changes_nothing(client, tokenizer, expected):
    tokenizer.enable_padding(length=128)
    embeddings = embed(client, *as_arrays(tokenizer.encode_batch(SENTENCES)))
    assert np.abs(embeddings - expected).max() <= TOLERANCE


def test_requests_that_the_server_batches_get_their_own_embeddings(client, tokens, expected):
    ids, mask = tokens
    requests = [inputs(ids[row : row + 1], mask[row : row + 1]) for row in range(len(SENTENCES))]
    for result, wanted in zip(infer_at_once(client, "minilm", requests * 3), [*expected] * 3, strict=True):
        assert np.abs(result.as_numpy("embedding")[0] - wanted).max() <= TOLERANCE


@pytest.mark.parametrize("sentence, paraphrase, unrelated", TRIPLES)
def test_a_paraphrase_is_nearer_than_an_unrelated_sentence(client, tokenizer, sentence, paraphrase, unrelated):
    tokenizer.enable_padding()
    first, same, other = embed(client, *as_arrays(tokenizer.encode_batch([sentence, paraphrase, unrelated])))
    assert first @ same > first @ other + 0.2
