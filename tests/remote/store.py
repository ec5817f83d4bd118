"""An S3-compatible object store in a process of its own, and what tests do with it; begin at `Store`."""

import json
import subprocess
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / "third_party" / "remote" / "bin" / "python"
# Any pair is good until `Store.check_credentials`.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "anything", "AWS_REGION": "us-east-1"}
MAY_READ = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


class Store:
    """A running store; a context manager."""

    def __init__(self, port=0):
        command = [PYTHON, Path(__file__).with_name("moto_server.py"), str(port)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.port = int(self.process.stdout.readline())
        self.address = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Ends the store at once, and what was in it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()

    def bucket(self):
        """A new bucket."""
        return Bucket(self, f"models-{uuid.uuid4().hex[:8]}")

    def call(self, method, path, body=b"", service="s3"):
        """One request, with a signature that nobody checks."""
        scope = f"Credential=x/20200101/us-east-1/{service}/aws4_request, SignedHeaders=host, Signature=x"
        headers = {"Authorization": f"AWS4-HMAC-SHA256 {scope}"}
        form = "application/x-www-form-urlencoded" if service == "iam" else "application/octet-stream"
        headers["Content-Type"] = form
        request = urllib.request.Request(self.address + path, data=body or None, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.read()

    def requests(self):
        """The requests since the last call: pairs of LIST, GET or HEAD and a path."""
        return [tuple(pair) for pair in json.loads(self.call("GET", "/_requests"))]

    def fetched(self):
        """The paths of the objects that were fetched since the last call."""
        return sorted(path for method, path in self.requests() if method == "GET")

    def fail(self, path, times, how):
        """Lets the next `times` reads of paths with `path` in them go wrong."""
        self.call("POST", "/_faults", json.dumps([{"path": path, "times": times, "how": how}]).encode())

    def check_credentials(self):
        """Makes somebody who may do everything, and refuses everybody else from then on. Returns who that is."""
        self.iam(Action="CreateUser", UserName="reader")
        policy = {"UserName": "reader", "PolicyName": "all", "PolicyDocument": json.dumps(MAY_READ)}
        self.iam(Action="PutUserPolicy", **policy)
        created = ElementTree.fromstring(self.iam(Action="CreateAccessKey", UserName="reader"))
        text = {element.tag.rsplit("}", 1)[-1]: element.text for element in created.iter()}
        self.call("POST", "/moto-api/reset-auth", b"0")
        pair = {"AWS_ACCESS_KEY_ID": text["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": text["SecretAccessKey"]}
        return {**CREDENTIALS, **pair}

    def iam(self, **parameters):
        body = urllib.parse.urlencode({"Version": "2010-05-08", **parameters}).encode()
        return self.call("POST", "/", body, service="iam")


class Bucket:
    """A bucket with a repository below `models/`."""

    def __init__(self, store, name):
        self.store, self.name = store, name
        store.call("PUT", f"/{name}")
        self.url = f"s3://{store.address}/{name}/models"

    def put(self, path, contents):
        """Writes one object of the repository."""
        contents = contents.encode() if isinstance(contents, str) else contents
        self.store.call("PUT", f"/{self.name}/models/{path}", contents)

    def delete(self, path):
        """Removes one object of the repository."""
        self.store.call("DELETE", f"/{self.name}/models/{path}")

    def upload(self, folder):
        """Writes a model's folder; an empty version folder becomes an object that ends with a slash."""
        for path in sorted(Path(folder).rglob("*")):
            name = str(path.relative_to(Path(folder).parent))
            if path.is_dir() and not any(path.iterdir()):
                self.put(name + "/", b"")
            elif path.is_file():
                self.put(name, path.read_bytes())

    def shown(self, paths):
        """The paths of this bucket's objects, relative to the repository."""
        start = f"/{self.name}/models/"
        return [path.removeprefix(start) for path in paths if path.startswith(start)]
