"""Certificates for tests, made by the openssl command: an authority, and pairs that it signs."""

import shutil
import subprocess
from pathlib import Path

import pytest

EXTENSIONS = "subjectAltName=DNS:localhost,IP:127.0.0.1"


def needs_openssl():
    """Marks tests that cannot run without the openssl command."""
    return pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command is not installed")


class Authority:
    """Signs certificates; keeps them in a folder."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.certificate, self.key = self.folder / "ca.crt", self.folder / "ca.key"
        subject = ["-subj", "/CN=authority for tests", "-addext", "basicConstraints=critical,CA:TRUE"]
        _openssl("req", "-x509", *_new_key(self.key), "-out", self.certificate, "-days", "2", *subject)

    def sign(self, name):
        """A new pair for this machine: the files of the certificate and of its key."""
        certificate, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        signer = ["-CA", self.certificate, "-CAkey", self.key]
        names = ["-subj", f"/CN={name}", "-addext", "basicConstraints=critical,CA:FALSE", "-addext", EXTENSIONS]
        _openssl("req", "-x509", *_new_key(key), "-out", certificate, "-days", "2", *signer, *names)
        return certificate, key


def _new_key(path):
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path]


def _openssl(*words):
    subprocess.run(["openssl", *words], check=True, capture_output=True)
