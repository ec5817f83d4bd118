"""The sentence encoder written a second time, in numpy and float64, from the published weights.

It shares nothing with the TorchScript that the server runs: what both agree on is what the weights say.
"""

import json
import math

import numpy as np

HEADS = 12
LAYERS = 6
EPSILON = 1e-12

erf = np.vectorize(math.erf, otypes=[np.float64])


def read_safetensors(path):
    """The tensors of a safetensors file by name; floats as float64."""
    raw = path.read_bytes()
    header_size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + header_size])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = (8 + header_size + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(raw[begin:end], "<f4").reshape(entry["shape"]).astype(np.float64)
    return tensors


class Encoder:
    """Embeds token ids; rows are computed one by one, without any padding."""

    def __init__(self, path):
        self.weights = read_safetensors(path)

    def embed(self, ids, mask):
        """One vector of length 1 for each row, from the tokens that its mask keeps."""
        return np.stack([self._embed_row(row[keep == 1]) for row, keep in zip(ids, mask, strict=True)])

    def _embed_row(self, ids):
        words = self.weights["embeddings.word_embeddings.weight"][ids]
        positions = self.weights["embeddings.position_embeddings.weight"][: len(ids)]
        kinds = self.weights["embeddings.token_type_embeddings.weight"][0]
        hidden = self._normalise("embeddings.LayerNorm", words + positions + kinds)
        for layer in range(LAYERS):
            hidden = self._layer(f"encoder.layer.{layer}", hidden)
        mean = hidden.mean(axis=0)
        return mean / np.linalg.norm(mean)

    def _layer(self, name, hidden):
        attended = self._dense(f"{name}.attention.output.dense", self._attend(f"{name}.attention.self", hidden))
        hidden = self._normalise(f"{name}.attention.output.LayerNorm", hidden + attended)
        inner = self._dense(f"{name}.intermediate.dense", hidden)
        inner = inner * 0.5 * (1 + erf(inner / math.sqrt(2)))
        return self._normalise(f"{name}.output.LayerNorm", hidden + self._dense(f"{name}.output.dense", inner))

    def _attend(self, name, hidden):
        length, width = hidden.shape
        split = (length, HEADS, width // HEADS)
        query, key, value = (
            self._dense(f"{name}.{each}", hidden).reshape(split).transpose(1, 0, 2)
            for each in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(width // HEADS)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        return (scores @ value).transpose(1, 0, 2).reshape(length, width)

    def _dense(self, name, hidden):
        return hidden @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _normalise(self, name, hidden):
        centred = hidden - hidden.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
