"""Publishing over real HTTP: S3 against moto's server, hub and Drive against the
loopback servers of `tests.loopback`, which speak the calls we use and are not those
services."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys

import boto3
import pytest
from huggingface_hub import constants
from moto.server import ThreadedMotoServer

from loralab.errors import PublishingError
from loralab.publishing.publish import CloudUploader, publish, target_config
from loralab.publishing.retry import Retry
from loralab.publishing.targets.s3 import MEBIBYTE
from tests.cli import loralab
from tests.loopback import DriveLoopback, Fault, HubLoopback, Proxy
from tests.published import adapter_run, content

SOON = Retry(first_seconds=0.001)
SECRETS = {
    "HF_TOKEN": "hf_loopback_token",
    "AWS_ACCESS_KEY_ID": "loopback-key-id",
    "AWS_SECRET_ACCESS_KEY": "loopback-secret-key",
}
LARGE = random.Random(0).randbytes(12 * MEBIBYTE)  # parts of 5, 5 and 2 MiB
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # LFS over HTTP is what the loopback speaks; Xet needs a server of its own
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def moto_port():
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def bucket(moto_port, request):
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:20]
    url = f"http://127.0.0.1:{moto_port}"
    client = boto3.session.Session().client(
        "s3", endpoint_url=url, region_name="us-east-1"
    )
    client.create_bucket(Bucket=name)
    return client, name


def proxied(port, **given):
    proxy = Proxy(port, **given)
    return proxy, {"endpoint_url": proxy.url, "part_bytes": 5 * MEBIBYTE}


def stored(bucket, key):
    client, name = bucket
    return client.get_object(Bucket=name, Key=key)


@pytest.fixture
def hub():
    with HubLoopback().serving() as server:
        yield server


@pytest.fixture
def drive(tmp_path, monkeypatch):
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import rsa

    with DriveLoopback().serving() as server:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
        )
        account = {
            "type": "service_account",
            "client_email": "loopback@example.com",
            "private_key": pem.decode(),
            "token_uri": f"{server.url}/token",
        }
        path = tmp_path / "account.json"
        path.write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        yield server


def to_hub(server):
    return target_config("hub", {"repo": "org/name", "endpoint": server.url})


def to_drive(server):
    chunk = 256 << 10
    params = {"folder": "root", "endpoint": server.url, "chunk_bytes": chunk}
    return target_config("gdrive", params)


# S3


def test_s3_holds_what_was_published_and_a_repeat_sends_nothing(
    tmp_path, bucket, moto_port
):
    run = adapter_run(tmp_path, LARGE)
    proxy, params = proxied(moto_port)
    receipt = CloudUploader(run).upload_to_s3(bucket[1], **params)
    found = stored(bucket, f"{run.id}/{WEIGHTS}")
    assert found["Body"].read() == LARGE
    assert found["Metadata"]["sha256"] == hashlib.sha256(LARGE).hexdigest()
    assert found["ETag"].strip('"').endswith("-3")
    first = proxy.sent
    again = CloudUploader(run).upload_to_s3(bucket[1], **params)
    assert (again["sent"], sorted(again["there"])) == ([], sorted(receipt["sent"]))
    assert proxy.sent - first < MEBIBYTE / 10


def test_s3_goes_on_by_itself_where_the_line_was_cut(tmp_path, bucket, moto_port):
    run = adapter_run(tmp_path, LARGE)
    proxy, params = proxied(moto_port, at=8 * MEBIBYTE)
    events = []
    target = target_config("s3", {"bucket": bucket[1], **params})
    publish(run, target, on_event=events.append, retry=SOON)
    assert [event["event"] for event in events].count("retry") == 1
    assert stored(bucket, f"{run.id}/{WEIGHTS}")["Body"].read() == LARGE
    # the part that was cut is sent again, the one before it is not
    assert proxy.sent < 16 * MEBIBYTE


KILLED = """
import json, sys
from pathlib import Path
from loralab import Run, publish, target_config
publish(Run(Path(sys.argv[1])), target_config("s3", json.loads(sys.argv[2])))
"""


def test_s3_resumes_after_a_kill_and_sends_less(tmp_path, bucket, moto_port):
    run = adapter_run(tmp_path, LARGE)
    killed = []
    proxy, params = proxied(
        moto_port, at=8 * MEBIBYTE, action=lambda: killed[0].send_signal(signal.SIGKILL)
    )
    given = {"bucket": bucket[1], **params}
    command = [sys.executable, "-c", KILLED, str(run.path), json.dumps(given)]
    killed.append(subprocess.Popen(command))
    assert killed[0].wait(timeout=60) == -signal.SIGKILL
    assert not (run.path / "published.json").exists()
    pending = bucket[0].list_multipart_uploads(Bucket=bucket[1])["Uploads"]
    assert len(pending) == 1
    before, events = proxy.sent, []
    publish(run, target_config("s3", given), on_event=events.append)
    sent = [e["bytes"] for e in events if e["event"] == "sending" and WEIGHTS in str(e)]
    assert sent == [5 * MEBIBYTE, 2 * MEBIBYTE]  # not the first part again
    assert proxy.sent - before < 8 * MEBIBYTE
    assert stored(bucket, f"{run.id}/{WEIGHTS}")["Body"].read() == LARGE
    assert "Uploads" not in bucket[0].list_multipart_uploads(Bucket=bucket[1])


def test_s3_does_not_go_on_with_the_upload_of_other_content(
    tmp_path, bucket, moto_port
):
    run = adapter_run(tmp_path, LARGE)
    _, params = proxied(moto_port, at=8 * MEBIBYTE)
    target = target_config("s3", {"bucket": bucket[1], **params})
    with pytest.raises(PublishingError, match="failed 1 times"):
        publish(run, target, retry=Retry(attempts=1))
    other = LARGE[:-1] + bytes([LARGE[-1] ^ 1])
    (run.adapter / WEIGHTS).write_bytes(other)
    publish(run, target, retry=SOON)
    found = stored(bucket, f"{run.id}/{WEIGHTS}")
    assert found["Body"].read() == other
    assert found["Metadata"]["sha256"] == hashlib.sha256(other).hexdigest()
    assert "Uploads" not in bucket[0].list_multipart_uploads(Bucket=bucket[1])


def test_s3_replaces_an_object_of_other_content(tmp_path, bucket, moto_port):
    run = adapter_run(tmp_path)
    bucket[0].put_object(
        Bucket=bucket[1],
        Key=f"in/here/{WEIGHTS}",
        Body=b"WEIGHTS",
        Metadata={"sha256": hashlib.sha256(b"weights").hexdigest()},  # a lie
    )
    proxy, _ = proxied(moto_port)
    params = {"endpoint_url": proxy.url, "prefix": "in/here/"}
    receipt = CloudUploader(run).upload_to_s3(bucket[1], **params)
    assert WEIGHTS in receipt["sent"]
    assert stored(bucket, f"in/here/{WEIGHTS}")["Body"].read() == b"weights"


def test_s3_without_bucket_is_told_at_once(tmp_path, moto_port):
    run = adapter_run(tmp_path)
    with pytest.raises(PublishingError, match="NoSuchBucket") as caught:
        url = f"http://127.0.0.1:{moto_port}"
        CloudUploader(run).upload_to_s3("not-there", endpoint_url=url)
    assert "AWS_ACCESS_KEY_ID" in caught.value.fix


def test_an_upload_that_fails_three_times_ends_with_one_message(tmp_path):
    run = adapter_run(tmp_path)
    before = content(run)
    given = ("bucket=abc", "endpoint_url=http://127.0.0.1:9")  # nobody serves there
    told = loralab("publish", run.path, "s3", *given)
    assert told.code == 2
    assert "failed 3 times in a row" in told.err
    assert "0 of 6 files are there" in told.err
    assert told.out.count("again in") == 2
    assert "Traceback" not in told.err
    assert content(run) == before
    assert not (run.path / "published.json").exists()


# hub


def test_the_hub_holds_what_was_published_in_one_commit(tmp_path, hub):
    run = adapter_run(tmp_path)
    publish(run, to_hub(hub))
    repo = hub.repos["org/name"]
    assert repo[WEIGHTS] == (b"weights", True)
    assert repo["eval/test.json"][0] == content(run)["eval/test.json"]
    assert repo["README.md"][0].startswith(b"---\n")
    assert (hub.private["org/name"], hub.commits) == (True, 1)
    assert publish(run, to_hub(hub))["sent"] == []
    assert (hub.commits, hub.received) == (1, len(b"weights"))
    (run.adapter / "adapter_config.json").write_text('{"r": 9}')
    sent = publish(run, to_hub(hub))["sent"]
    assert set(sent) == {"adapter_config.json", "manifest.json"}


def test_the_hub_is_tried_again_and_large_files_are_sent_once(tmp_path, hub):
    run = adapter_run(tmp_path)
    hub.faults = [Fault("POST", "/commit/", 503, times=2)]
    publish(run, to_hub(hub), retry=SOON)
    assert (hub.failed, hub.commits) == (2, 1)
    assert hub.received == len(b"weights")


def test_a_large_file_that_may_not_be_sent_is_told(tmp_path, hub):
    run = adapter_run(tmp_path)
    hub.faults = [Fault("PUT", "/lfs/", 403)]
    with pytest.raises(PublishingError, match="refused: HTTP 403"):
        publish(run, to_hub(hub), retry=SOON)
    assert hub.repos["org/name"] == {}  # one commit or none


def test_offline_is_told_as_what_it_is(tmp_path, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PublishingError) as caught:
        publish(adapter_run(tmp_path), to_hub(hub), retry=SOON)
    assert caught.value.fix == "unset HF_HUB_OFFLINE"


def test_the_hub_that_fails_three_times_is_told(tmp_path, hub):
    run = adapter_run(tmp_path)
    hub.faults = [Fault("POST", "/commit/", 503, times=3)]
    with pytest.raises(PublishingError, match="failed 3 times in a row: HTTP 503"):
        publish(run, to_hub(hub), retry=SOON)
    assert not (run.path / "published.json").exists()
    publish(run, to_hub(hub))  # a repeat goes on: the large file is there
    assert hub.received == len(b"weights")


def test_a_token_that_may_not_write_is_not_tried_again(tmp_path, hub):
    run = adapter_run(tmp_path)
    hub.faults = [Fault("POST", "/api/repos/create", 403, times=9)]
    hub.faults += [Fault("GET", "/api/models/org/name", 404, times=9)]
    with pytest.raises(PublishingError, match=r"refused: HTTP 40[34]") as caught:
        publish(run, to_hub(hub), retry=SOON)
    assert "HF_TOKEN" in caught.value.fix


def test_a_hub_that_tells_another_checksum_is_not_believed(tmp_path, hub):
    run = adapter_run(tmp_path)
    hub.lie = True
    with pytest.raises(PublishingError, match=f"checksum or size differs.*{WEIGHTS}"):
        publish(run, to_hub(hub))
    assert not (run.path / "published.json").exists()


def test_a_public_repository_is_not_taken_for_a_private_one(tmp_path, hub):
    run = adapter_run(tmp_path)
    hub.repos["org/name"], hub.private["org/name"] = {}, False
    with pytest.raises(PublishingError, match="is public"):
        publish(run, to_hub(hub))
    assert hub.repos["org/name"] == {}
    params = {"endpoint": hub.url, "private": False}
    CloudUploader(run).upload_to_huggingface("org/name", **params)
    assert WEIGHTS in hub.repos["org/name"]


def test_the_hub_needs_a_token_of_the_environment(tmp_path, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PublishingError, match="no token"):
        publish(adapter_run(tmp_path), to_hub(hub))
    assert hub.requests == []


# Drive


def test_drive_holds_what_was_published_in_folders(tmp_path, drive):
    run = adapter_run(tmp_path, LARGE[: MEBIBYTE + 1])
    publish(run, to_drive(drive))
    (weights,) = drive.at("root", f"{run.id}/{WEIGHTS}")
    assert weights.data == LARGE[: MEBIBYTE + 1]
    (result,) = drive.at("root", f"{run.id}/eval/test.json")
    assert result.data == content(run)["eval/test.json"]
    assert publish(run, to_drive(drive))["sent"] == []
    (run.adapter / WEIGHTS).write_bytes(b"others")
    publish(run, to_drive(drive))
    (weights,) = drive.at("root", f"{run.id}/{WEIGHTS}")  # replaced, not beside it
    assert weights.data == b"others"


def test_drive_goes_on_where_the_line_was_cut(tmp_path, drive):
    run = adapter_run(tmp_path, LARGE[:MEBIBYTE])
    session = Fault("PUT", "/session/", 0, keep=1000)
    events = []

    def cut(event):  # in the second piece of the weights
        events.append(event)
        if event["event"] == "sending" and event["name"] == WEIGHTS:
            drive.faults = drive.faults or [session]

    publish(run, to_drive(drive), on_event=cut, retry=SOON)
    assert drive.failed == 1
    (weights,) = drive.at("root", f"{run.id}/{WEIGHTS}")
    assert weights.data == LARGE[:MEBIBYTE]
    pieces = [e["bytes"] for e in events if e.get("name") == WEIGHTS]
    assert sum(pieces) == MEBIBYTE  # the pieces before the cut were not sent again
    assert drive.received == sum(len(i.data) for i in drive.items.values())


def test_drive_resumes_in_another_process_by_the_kept_session(tmp_path, drive):
    run = adapter_run(tmp_path, LARGE[:MEBIBYTE])

    class Killed(BaseException):
        """Nothing catches it."""

    def kill(event):
        if event["event"] == "sending" and event["name"] == WEIGHTS:
            raise Killed

    with pytest.raises(Killed):
        publish(run, to_drive(drive), on_event=kill)
    (note,) = (tmp_path / "cache" / "publishing").iterdir()
    assert note.stat().st_mode & 0o077 == 0  # a session's address is for its owner
    assert "/session/" in note.read_text()
    before = drive.received
    publish(run, to_drive(drive))
    total = sum(len(i.data) for i in drive.items.values())
    assert drive.received == total  # in both together, each byte once
    assert drive.received - before < total - 250_000
    assert list((tmp_path / "cache" / "publishing").iterdir()) == []


def test_drive_begins_anew_where_a_session_is_forgotten(tmp_path, drive):
    run = adapter_run(tmp_path, LARGE[:MEBIBYTE])
    failing = Fault("PUT", "/session/", 503, times=1)

    def forget(event):
        if event["event"] == "sending" and event["name"] == WEIGHTS:
            drive.faults = drive.faults or [failing]
        if event["event"] == "retry":
            drive.sessions.clear()

    publish(run, to_drive(drive), on_event=forget, retry=SOON)
    assert drive.failed == 1
    (weights,) = drive.at("root", f"{run.id}/{WEIGHTS}")
    assert weights.data == LARGE[:MEBIBYTE]


@pytest.mark.parametrize(("times", "works"), [(2, True), (3, False)])
def test_drive_fails_three_times_and_no_more(tmp_path, drive, times, works):
    run = adapter_run(tmp_path)
    drive.faults = [Fault("PUT", "/session/", 500, times=times)]
    if works:
        publish(run, to_drive(drive), retry=SOON)
        return
    with pytest.raises(PublishingError, match=r"failed 3 times.*HTTP 500") as caught:
        publish(run, to_drive(drive), retry=SOON)
    assert "/session/" not in str(caught.value)
    assert not (run.path / "published.json").exists()


def test_a_drive_that_tells_another_checksum_is_not_believed(tmp_path, drive):
    run = adapter_run(tmp_path)
    drive.lie = True
    with pytest.raises(PublishingError, match="checksum or size differs"):
        publish(run, to_drive(drive))


@pytest.mark.parametrize("text", [None, "{}", "not JSON"])
def test_drive_needs_credentials_that_can_be_read(tmp_path, drive, monkeypatch, text):
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    if text is not None:
        (tmp_path / "key.json").write_text(text)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    with pytest.raises(PublishingError, match="credentials") as caught:
        publish(adapter_run(tmp_path), to_drive(drive))
    assert caught.value.where == "GOOGLE_APPLICATION_CREDENTIALS"
    assert drive.requests == []


# secrets


def test_no_secret_is_written_anywhere(
    tmp_path, bucket, moto_port, hub, drive, caplog, capfd
):
    run = adapter_run(tmp_path / "runs")
    caplog.set_level("DEBUG", "loralab")
    events = []
    hub.faults = [Fault("POST", "/commit/", 503)]
    s3 = {"bucket": bucket[1], "endpoint_url": f"http://127.0.0.1:{moto_port}"}
    for target in (to_hub(hub), to_drive(drive), target_config("s3", s3)):
        publish(run, target, on_event=events.append, retry=SOON)
    key = json.loads((tmp_path / "account.json").read_text())["private_key"]
    secrets = [*SECRETS.values(), key, key.splitlines()[1], "/session/"]
    receipts = (run.path / "published.json").read_text()
    assert len(json.loads(receipts)["receipts"]) == 3
    stdout = "".join(capfd.readouterr())
    texts = [receipts, caplog.text, stdout, json.dumps(events)]
    texts += [data.decode(errors="replace") for data in content(run).values()]
    for secret in secrets:
        assert not any(secret in text for text in texts)
    sent = [item.data for item in drive.items.values()]
    sent += [data for data, _ in hub.repos["org/name"].values()]
    assert not any(secret.encode() in data for secret in secrets for data in sent)
    used = [headers.get("authorization") for _, _, headers in hub.requests]
    used += [headers.get("Authorization") for _, _, headers in hub.requests]
    assert f"Bearer {SECRETS['HF_TOKEN']}" in used  # it was really in use


def test_nothing_but_the_environment_is_asked_for_a_token(tmp_path, hub, monkeypatch):
    """A token that `hf auth login` stored is not sent to an endpoint of a config."""
    stored_token = tmp_path / "token"
    stored_token.write_text("hf_stored_by_login")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(stored_token))
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(PublishingError, match="no token"):
        publish(adapter_run(tmp_path), to_hub(hub))
    assert os.environ["HF_TOKEN"] == ""
