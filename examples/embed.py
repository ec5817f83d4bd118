#!/usr/bin/env python3
"""Embeds sentences with the served model `minilm`, and prints how alike each two of them are.

usage: .venv/bin/python examples/embed.py [--url HOST:PORT] [SENTENCE ...]

Needs `make run` in another terminal, and `scripts/setup-clients` once. Nothing here is special to Nereid: the client is
Triton's, and the tokenizer is the one that the model was published with.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpcclient
from tokenizers import Tokenizer

VOCABULARY = Path(__file__).resolve().parent.parent / "third_party" / "minilm" / "tokenizer.json"
SENTENCES = [
    "A cat sleeps on the sofa.",
    "A kitten naps on the couch.",
    "Stocks fell on Monday.",
]


def tokenize(sentences):
    """Token ids and mask as INT64 [sentences, tokens]: shorter sentences are filled with zeros that the mask leaves out."""
    tokenizer = Tokenizer.from_file(str(VOCABULARY))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(sentences)
    ids = np.array([each.ids for each in encoded], dtype=np.int64)
    mask = np.array([each.attention_mask for each in encoded], dtype=np.int64)
    return ids, mask


def embed(client, sentences):
    """One embedding of length 1 for each sentence, as FP32 [sentences, 384]."""
    inputs = []
    for name, array in zip(("input_ids", "attention_mask"), tokenize(sentences), strict=True):
        inputs.append(grpcclient.InferInput(name, list(array.shape), "INT64").set_data_from_numpy(array))
    return client.infer("minilm", inputs).as_numpy("embedding")


def main():
    parser = argparse.ArgumentParser(description="Embeds sentences and compares each two of them.")
    parser.add_argument("--url", default="localhost:8001", help="the server's gRPC address")
    parser.add_argument("sentences", nargs="*", metavar="SENTENCE")
    arguments = parser.parse_args()
    sentences = arguments.sentences or SENTENCES
    with grpcclient.InferenceServerClient(arguments.url) as client:
        embeddings = embed(client, sentences)
    print(f"{len(sentences)} embeddings of {embeddings.shape[1]} numbers; the first begins {embeddings[0, :4].round(4)}")
    for (one, first), (other, second) in itertools.combinations(zip(sentences, embeddings, strict=True), 2):
        print(f"{first @ second:5.2f}  {one} | {other}")


if __name__ == "__main__":
    main()
