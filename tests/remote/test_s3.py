"""Model repositories in a bucket: loading, polling, the cache, faults of the store, and credentials."""

import hashlib
import json
import shutil
import threading
import time

import numpy as np
import pytest
import tritonclient.http as httpclient
from nereid import ROOT, Nereid, identity_config, wait_until, write_model
from store import CREDENTIALS, Bucket, Store

MODEL = "add_sub/2/model.pt"
CONFIG = "add_sub/config.pbtxt"


class Serving(Nereid):
    """A server of a bucket, with a cache of its own unless told."""

    def __init__(self, repository, cache, *flags, variables=CREDENTIALS):
        url = getattr(repository, "url", repository)
        more = ["--repository-cache-directory", str(cache), "--repository-retry-count=2", *flags]
        super().__init__(url, *more, environment=variables)

    def client(self):
        return httpclient.InferenceServerClient(self.http)

    def log_text(self):
        with open(self.log.name) as log:
            return log.read()

    def states(self):
        with self.client() as client:
            index = client.get_model_repository_index()
        return {(each["name"], each.get("version")): (each.get("state"), each.get("reason")) for each in index}


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def local(tmp_path):
    """A directory with the model `plain`."""
    write_model(tmp_path / "local", "plain", identity_config(["FP32"]))
    return tmp_path / "local"


@pytest.fixture
def filled(bucket):
    """A bucket with the example `add_sub`."""
    upload_example(bucket)
    return bucket


def upload_example(bucket, policy=""):
    """The example `add_sub`, of which the latest version is served unless `policy` says otherwise."""
    bucket.upload(ROOT / "model_repository" / "add_sub")
    config = (ROOT / "model_repository" / CONFIG).read_text()
    bucket.put(CONFIG, config.replace("version_policy { all { } }", policy))


def assert_adds(server, model="add_sub"):
    """One inference, and its result is right."""
    with server.client() as client:
        inputs = []
        values = [np.arange(16, dtype=np.float32), np.ones(16, dtype=np.float32)]
        metadata = client.get_model_metadata(model)
        for each, array in zip(metadata["inputs"], values, strict=True):
            shape = [1 if size < 0 else size for size in each["shape"]]
            inputs.append(httpclient.InferInput(each["name"], shape, "FP32"))
            inputs[-1].set_data_from_numpy(array.reshape(shape))
        result = client.infer(model, inputs)
        assert np.array_equal(result.as_numpy(metadata["outputs"][0]["name"]).reshape(-1), values[0] + values[1])


def objects(cache):
    """The cached files by their origin's path inside the bucket's repository."""
    found = {}
    for listed in cache.glob("nereid-objects/*/*.sum"):
        origin = listed.read_text().split()[1].split("/models/")[1]
        found[origin] = listed.with_suffix("")
    return found


def test_only_what_a_model_needs_is_fetched(filled, cache, store):
    store.requests()
    with Serving(filled, cache) as server:
        assert_adds(server)
        assert filled.shown(store.fetched()) == [MODEL, CONFIG]
    assert not list(cache.glob("trees/*")), "a server that ends leaves no tree behind"


def test_a_model_without_files_has_versions_by_empty_objects(bucket, cache, tmp_path):
    write_model(tmp_path / "made", "plain", identity_config(["FP32"], extra="version_policy { all { } }"), versions=(1, 3))
    bucket.upload(tmp_path / "made" / "plain")
    with Serving(bucket, cache) as server:
        assert set(server.states()) == {("plain", "1"), ("plain", "3")}


def test_a_restart_fetches_nothing_again(filled, cache, store):
    with Serving(filled, cache) as server:
        server.process.kill()
        server.process.wait()
    store.requests()
    with Serving(filled, cache) as server:
        assert_adds(server)
        assert store.fetched() == []
        assert len(list(cache.glob("trees/*.lock"))) == 1, "the tree of the killed server is removed"


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "unsummed"])
def test_a_cached_file_that_is_not_what_was_fetched_is_fetched_again(filled, cache, store, how):
    with Serving(filled, cache):
        pass
    file = objects(cache)[MODEL]
    contents = file.read_bytes()
    if how == "unsummed":
        file.with_suffix(".sum").unlink()
    else:
        flipped = contents[:-9] + bytes([contents[-9] ^ 1]) + contents[-8:]
        file.chmod(0o600)
        file.write_bytes({"flipped": flipped, "cut": contents[:-9], "empty": b""}[how])
    store.requests()
    with Serving(filled, cache) as server:
        assert_adds(server)
        assert filled.shown(store.fetched()) == [MODEL]
    assert objects(cache)[MODEL].read_bytes() == contents


def test_kill_while_a_file_arrives(filled, cache, store):
    with Serving(filled, cache, "--model-control-mode=explicit", "--repository-timeout-secs=60") as server:
        store.fail(MODEL, 1, "stall")
        thread = threading.Thread(target=lambda: pytest.raises(Exception, load, server))
        thread.start()
        wait_until(lambda: MODEL in filled.shown(store.fetched()))
        server.process.kill()
        server.process.wait()
        thread.join()
    assert len(list(cache.glob("arriving/*"))) == 1
    with Serving(filled, cache) as server:
        assert_adds(server)
    assert not list(cache.glob("arriving/*"))


def test_a_stop_does_not_wait_for_the_store(filled, cache, store):
    with Serving(filled, cache, "--model-control-mode=explicit", "--repository-timeout-secs=600") as server:
        store.fail(MODEL, 1, "stall")
        thread = threading.Thread(target=lambda: pytest.raises(Exception, load, server))
        thread.start()
        wait_until(lambda: MODEL in filled.shown(store.fetched()))
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 10
        thread.join()


def test_the_index_says_how_much_has_arrived(bucket, cache, store, tmp_path):
    made = write_model(tmp_path, "large", identity_config(["FP32"]))
    (made / "1" / "weights").write_bytes(bytes(8_000_000))
    bucket.upload(made)
    with Serving(bucket, cache, "--model-control-mode=explicit") as server:
        store.fail("weights", 1, "stall")
        thread = threading.Thread(target=lambda: pytest.raises(Exception, load, server, "large"))
        thread.start()
        wait_until(lambda: "4 of 8 MB" in str(server.states()))
        assert server.stop() == 0
        thread.join()


def load(server, model="add_sub"):
    with server.client() as client:
        client.load_model(model)


def test_a_change_is_polled(filled, cache, store):
    with Serving(filled, cache, "--model-control-mode=poll", "--repository-poll-secs=1") as server:
        assert set(server.states()) == {("add_sub", "2")}
        store.requests()
        upload_example(filled, "version_policy { specific { versions: [ 1 ] } }")
        wait_until(lambda: server.states().get(("add_sub", "1"), [None])[0] == "READY")
        assert_adds(server)
        assert filled.shown(store.fetched()) == ["add_sub/1/model.pt", CONFIG]
        filled.upload(write_model(cache.parent, "added", identity_config(["FP32"])))
        wait_until(lambda: ("added", "1") in server.states())
        filled.delete("added/config.pbtxt")
        filled.delete("added/1/")
        wait_until(lambda: server.states()[("added", "1")] == ("UNAVAILABLE", "unloaded"))


def test_models_are_loaded_and_unloaded_by_command(filled, cache, store):
    store.requests()
    with Serving(filled, cache, "--model-control-mode=explicit") as server, server.client() as client:
        assert [name for name, _ in server.states()] == ["add_sub"]
        assert store.fetched() == []
        client.load_model("add_sub")
        assert_adds(server)
        store.requests()
        client.load_model("add_sub")
        client.unload_model("add_sub")
        client.load_model("add_sub")
        assert_adds(server)
        assert store.fetched() == []


def test_a_store_that_is_down_does_not_matter_if_the_cache_is_warm(cache):
    with Store() as store:
        bucket = store.bucket()
        upload_example(bucket)
        with Serving(bucket, cache):
            pass
        store.stop()
        with Serving(bucket, cache) as server:
            assert_adds(server)
            assert f"the repository '{bucket.url}' cannot be listed: what is known of it" in server.log_text()
        with pytest.raises(AssertionError) as failed:
            Serving(bucket, cache.parent / "cold")
        assert "the server ended with 1" in str(failed.value)
        assert f"cannot list '{bucket.url}': " in str(failed.value)
        assert "Connection refused" in str(failed.value)


@pytest.mark.parametrize("how", ["status", "cut", "garble", "stall"])
def test_what_goes_wrong_once_is_done_again(filled, cache, store, how):
    store.fail(MODEL, 1, how)
    with Serving(filled, cache, "--repository-timeout-secs=1") as server:
        assert_adds(server)
    assert objects(cache)[MODEL].read_bytes() == (ROOT / "model_repository" / MODEL).read_bytes()


def test_what_stays_wrong_is_an_error_of_the_model(filled, cache, store):
    store.fail(MODEL, 1000, "status")
    with Serving(filled, cache) as server:
        ((_, (state, reason)),) = server.states().items()
        assert state == "UNAVAILABLE"
        assert f"cannot read '{filled.url}/{MODEL}': status 503, SlowDown" in reason
        assert "AWS_ACCESS_KEY_ID of the environment" in reason
    store.fail("", 0, "status")


def test_two_servers_share_a_cache(filled, cache, store):
    store.requests()
    with Serving(filled, cache, "--model-control-mode=explicit") as one:
        with Serving(filled, cache, "--model-control-mode=explicit") as other:
            for server in (one, other):
                load(server)
                assert_adds(server)
            assert filled.shown(store.fetched()) == [MODEL, CONFIG]
            one.process.kill()
            one.process.wait()
            assert_adds(other)


def test_the_cache_is_bounded_and_keeps_what_is_in_use(bucket, cache, tmp_path):
    for name in ("first", "second", "third"):
        made = write_model(tmp_path, name, identity_config(["FP32"]))
        (made / "1" / "weights").write_bytes(name.encode() * 10_000)
        bucket.upload(made)
    flags = ["--model-control-mode=explicit", "--repository-cache-bytes=130000"]
    with Serving(bucket, cache, *flags) as server, server.client() as client:
        client.load_model("first")
        client.load_model("second")
        with pytest.raises(Exception, match="may hold 130000 bytes .--repository-cache-bytes.: 50000 more are needed"):
            client.load_model("third")
        assert client.is_model_ready("first")
        client.unload_model("second")
        wait_until(lambda: server.states()[("second", "1")] == ("UNAVAILABLE", "unloaded"))
        client.load_model("third")
        kept = objects(cache)
        assert "first/1/weights" in kept and "third/1/weights" in kept and "second/1/weights" not in kept


def test_credentials(cache, tmp_path):
    with Store() as store:
        bucket = store.bucket()
        upload_example(bucket)
        right = store.check_credentials()
        with Serving(bucket, cache, variables=right) as server:
            assert_adds(server)
        wrong = {**right, "AWS_SECRET_ACCESS_KEY": "not-this-one"}
        with Serving(bucket, cache, variables=wrong) as server:
            assert_adds(server)
            assert "status 403, SignatureDoesNotMatch" in server.log_text(), "it goes on with what is in the cache"
        with pytest.raises(AssertionError) as failed:
            Serving(bucket, tmp_path / "cold", variables=wrong)
        assert f"cannot list '{bucket.url}': status 403, SignatureDoesNotMatch" in str(failed.value)
        assert "(credentials: AWS_ACCESS_KEY_ID of the environment)" in str(failed.value)
        assert "not-this-one" not in str(failed.value)
        # The longest prefix wins, over the environment too.
        pair = {"key_id": right["AWS_ACCESS_KEY_ID"], "secret_key": right["AWS_SECRET_ACCESS_KEY"], "region": "us-east-1"}
        path = tmp_path / "credentials.json"
        path.write_text(json.dumps({"s3": {"": {"key_id": "x", "secret_key": "not-this-one"}, bucket.url: pair}}))
        variables = {**wrong, "TRITON_CLOUD_CREDENTIAL_PATH": str(path)}
        with Serving(bucket, tmp_path / "other", variables=variables) as server:
            assert_adds(server)
        # A neighbour's path is not covered.
        with pytest.raises(AssertionError) as failed:
            Serving(bucket.url + "2", tmp_path / "other", variables=variables)
        assert "credentials: those for \"\" in '" in str(failed.value)
        assert "not-this-one" not in str(failed.value)


def test_triton_s_variable_names_the_cache(filled, tmp_path):
    variables = {**CREDENTIALS, "TRITON_AWS_MOUNT_DIRECTORY": str(tmp_path / "mounted")}
    with Serving(filled, tmp_path / "unused", variables=variables) as server:
        assert_adds(server)
    assert MODEL in objects(tmp_path / "mounted")
    assert not (tmp_path / "unused").exists()


def test_a_bucket_and_a_directory_together(filled, cache, local):
    shutil.copytree(ROOT / "model_repository" / "identity", local / "identity")
    with Serving(filled, cache, "--model-repository", str(local)) as server:
        assert {name for name, _ in server.states()} == {"add_sub", "plain", "identity"}


def test_a_bucket_that_refuses_does_not_take_the_others_with_it(cache, local):
    with Store() as store:
        bucket = store.bucket()
        upload_example(bucket)
        wrong = {**store.check_credentials(), "AWS_SECRET_ACCESS_KEY": "not-this-one"}
        refusal = f"cannot list '{bucket.url}': status 403"

        def serving(*flags):
            return Serving(bucket, cache, "--model-repository", str(local), *flags, variables=wrong)

        with serving("--model-control-mode=poll", "--repository-poll-secs=1", "--strict-readiness=false") as server:
            assert set(server.states()) == {("plain", "1")}
            write_model(local, "added", identity_config(["FP32"]))
            wait_until(lambda: ("added", "1") in server.states())
            shutil.rmtree(local / "added")
            wait_until(lambda: server.states()[("added", "1")] == ("UNAVAILABLE", "unloaded"))
            assert server.log_text().count(refusal) == 1, "it is said once, not at each poll"
        with serving("--model-control-mode=explicit", "--load-model=plain") as server:
            assert server.states()[("plain", "1")][0] == "READY"
            load(server, "plain")
            with pytest.raises(Exception, match="status 403"):
                load(server)
        for fatal in [(), ("--model-control-mode=explicit", "--load-model=plain", "--exit-on-error=true")]:
            with pytest.raises(AssertionError) as failed:
                serving(*fatal)
            assert "the server ended with 1" in str(failed.value)
            assert bucket.url in str(failed.value).splitlines()[-1]


def test_a_store_that_is_down_at_the_start_is_waited_for_where_somebody_looks_again(cache, local):
    with Store() as store:
        port, bucket = store.port, store.bucket()
    flags = ["--model-repository", str(local)]
    with pytest.raises(AssertionError, match="the server ended with 1"):
        Serving(bucket, cache, *flags)
    polling = ["--model-control-mode=poll", "--repository-poll-secs=1"]
    with Serving(bucket, cache, *flags, *polling) as server, server.client() as client:
        assert client.is_model_ready("plain") and not client.is_server_ready()
        with Store(port) as store:
            upload_example(Bucket(store, bucket.name))
            wait_until(client.is_server_ready)
            assert_adds(server)


def test_a_store_that_goes_down_stops_no_polling_and_unloads_nothing(cache, local):
    with Store() as store:
        bucket = store.bucket()
        upload_example(bucket)
        flags = ["--model-repository", str(local), "--model-control-mode=poll", "--repository-poll-secs=1"]
        with Serving(bucket, cache, *flags) as server:
            store.stop()
            write_model(local, "added", identity_config(["FP32"]))
            wait_until(lambda: ("added", "1") in server.states())
            assert_adds(server)
            assert server.log_text().count("cannot be listed: what is known of it") == 1


def test_a_key_that_no_file_can_have_is_ignored(filled, cache):
    for key in ("/add_sub/1/model.pt", "Icon%0D", "add_sub/Icon%0D", "add_sub//1/model.pt", "add_sub/../other/f"):
        filled.put(key, "odd")
    with Serving(filled, cache) as server:
        assert_adds(server)
        assert set(server.states()) == {("add_sub", "2")}
        for told in ("models//add_sub/1/model.pt", "models/Icon\\r", "models/add_sub/Icon\\r", "models/add_sub/../other/f"):
            assert f"the object '{told}' in '" in server.log_text()


def test_a_checksum_may_be_of_a_version_that_is_not_served(bucket, cache, store):
    def agents(digests):
        pairs = "".join(f'parameters {{ key: "MD5:{name}" value: "{digest}" }} ' for name, digest in digests.items())
        return f'model_repository_agents {{ agents {{ name: "checksum" {pairs} }} }}'

    names = ("1/model.pt", "2/model.pt")
    files = {name: (ROOT / "model_repository" / "add_sub" / name).read_bytes() for name in names}
    digests = {name: hashlib.md5(contents).hexdigest() for name, contents in files.items()}
    upload_example(bucket, agents(digests))
    store.requests()
    with Serving(bucket, cache) as server:
        assert_adds(server)
        assert set(server.states()) == {("add_sub", "2")}
        assert bucket.shown(store.fetched()) == ["add_sub/1/model.pt", MODEL, CONFIG]
    upload_example(bucket, agents({**digests, "1/model.pt": digests["2/model.pt"]}))
    with Serving(bucket, cache) as server:
        ((_, (state, reason)),) = server.states().items()
        assert state == "UNAVAILABLE" and "Mismatched MD5 hash for file 1/model.pt" in reason


def test_google_s_protocol_is_spoken(filled, cache, store):
    """Google's XML interface is close enough to S3's that moto answers it; Google itself was not asked."""
    url = filled.url.replace("s3://", "gs://")
    with Serving(url, cache, variables={"GOOGLE_SKIP_SIGNATURE": "true"}) as server:
        assert_adds(server)
