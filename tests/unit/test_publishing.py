import json
import sys

import pytest
import yaml
from tests.published import adapter_run, artefact_run, content

from loralab.errors import ConfigError, PublishingError, RunError
from loralab.publishing.card import model_card
from loralab.publishing.files import collect
from loralab.publishing.publish import CloudUploader, publish, target_config
from loralab.publishing.retry import Delivery, Retry
from loralab.publishing.store import Failure, File, library
from loralab.runs.files import sha256_file

SOON = Retry(first_seconds=0.001)


@pytest.fixture
def staging(tmp_path):
    (tmp_path / "staging").mkdir()
    return tmp_path / "staging"


def to(path):
    return target_config("archive", {"path": str(path)})


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_an_adapter_is_published_with_card_results_and_sums(tmp_path, staging):
    run = adapter_run(tmp_path)
    (run.adapter / "inputs.safetensors").write_bytes(b"what training rows were like")
    before = content(run)
    files = collect(run, staging)
    assert [f.name for f in files] == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.yaml",
        "eval/test.json",
        "manifest.json",
    ]  # no predictions, checkpoints, sketches of inputs: they are of people's rows
    told = json.loads(files[-1].path.read_text())["files"]
    assert list(told) == [f.name for f in files[:-1]]
    for file in files[:-1]:
        expected = {"bytes": file.path.stat().st_size, "sha256": sha256_file(file.path)}
        assert told[file.name] == expected
    assert content(run) == before  # nothing was written into the run


def test_what_is_published_depends_on_the_run_alone(tmp_path):
    run, sums = adapter_run(tmp_path), []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        sums.append([f.sha256 for f in collect(run, tmp_path / name)])
    assert sums[0] == sums[1]


@pytest.mark.parametrize("size", [10, (1 << 20) - 8])
def test_a_secret_of_the_environment_is_not_published(
    tmp_path, staging, monkeypatch, size
):
    secret = "hf_" + "s3cr3t" * 3
    run = adapter_run(tmp_path, weights=b"w" * size + secret.encode())
    collect(run, staging)  # not a secret yet: nothing to find
    monkeypatch.setenv("HF_TOKEN", secret)
    with pytest.raises(PublishingError, match="HF_TOKEN") as caught:
        publish(run, to(tmp_path / "a.zip"))
    assert secret not in str(caught.value)
    assert not (tmp_path / "a.zip").exists()


def test_a_link_and_a_name_of_ours_are_refused(tmp_path, staging):
    run = adapter_run(tmp_path)
    (run.adapter / "manifest.json").write_text("{}")
    with pytest.raises(PublishingError, match="ours to write"):
        collect(run, staging)
    (run.adapter / "manifest.json").unlink()
    (run.adapter / "link").symlink_to(run.path / "run.json")
    with pytest.raises(PublishingError, match="link"):
        collect(run, staging)


def test_the_card_says_what_the_run_says(tmp_path):
    text = model_card(adapter_run(tmp_path), "apache-2.0")
    assert front(text) == {
        "license": "apache-2.0",
        "base_model": "org/base",
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "tags": ["loralab", "lora"],
    }
    for said in (
        "1,234 of 99,999",
        "| 0.50 [0.25, 0.75] |",
        "95 % intervals over 9 rows",
        'from_pretrained("org/base", num_labels=2)',
        "set=sms-spam",
    ):
        assert said in text


def test_the_card_names_no_licence_hub_id_or_folder_that_it_does_not_know(tmp_path):
    run = adapter_run(tmp_path, base={"path": "/home/ada/base"})
    text = model_card(run)
    assert "license" not in front(text)
    assert "base_model" not in front(text)
    assert "/home" not in text


def test_a_data_set_of_the_hub_is_named(tmp_path):
    run = adapter_run(tmp_path)
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    config["data"]["source"] = {"name": "hub", "params": {"path": "org/rows"}}
    (run.path / "config.yaml").write_text(yaml.safe_dump(config))
    assert front(model_card(run))["datasets"] == ["org/rows"]


@pytest.mark.parametrize("passed", [True, False])
def test_the_card_of_an_artefact_tells_format_and_parity(tmp_path, passed):
    text = model_card(artefact_run(tmp_path, passed))
    assert front(text)["tags"] == ["loralab", "nf4", "torch"]
    assert "format: nf4 (block=64)" in text
    assert ("**did not pass**" in text) != passed
    assert "top-1 agreement" in text


@pytest.mark.parametrize(
    ("passed", "said"), [(None, "no parity"), (False, "not pass"), (1, "not pass")]
)
def test_an_artefact_without_parity_is_published_by_force_only(tmp_path, passed, said):
    run = artefact_run(tmp_path, passed)
    with pytest.raises(PublishingError, match=said):
        publish(run, to(tmp_path / "a.zip"))
    assert not (tmp_path / "a.zip").exists()
    assert publish(run, to(tmp_path / "a.zip"), force=True)["forced"] is True


def test_force_is_not_noted_where_it_was_not_needed(tmp_path):
    run = artefact_run(tmp_path)
    assert publish(run, to(tmp_path / "a.zip"), force=True)["forced"] is False


@pytest.mark.parametrize("status", ["failed", "running"])
def test_a_run_that_is_not_complete_is_not_published(tmp_path, status):
    run = adapter_run(tmp_path, status=status)
    with pytest.raises(PublishingError, match="not complete"):
        publish(run, to(tmp_path / "a.zip"), force=True)


def test_other_kinds_and_runs_without_adapter_are_not_published(tmp_path):
    with pytest.raises(PublishingError, match="kind 'study'"):
        publish(adapter_run(tmp_path / "a", kind="study"), to(tmp_path / "a.zip"))
    run = adapter_run(tmp_path / "b")
    run.adapter.rename(run.path / "elsewhere")
    with pytest.raises(RunError, match="no adapter"):
        publish(run, to(tmp_path / "a.zip"))


def test_a_dry_run_connects_to_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    run = adapter_run(tmp_path)
    before = content(run)
    for name, params in {
        "hub": {"repo": "org/name", "endpoint": "http://127.0.0.1:1"},
        "s3": {"bucket": "bucket", "endpoint_url": "http://127.0.0.1:1"},
        "gdrive": {"folder": "id", "endpoint": "http://127.0.0.1:1"},
        "archive": {"path": str(tmp_path / "a.zip")},
    }.items():
        told = publish(run, target_config(name, params), dry_run=True)
        assert told["dry_run"] is True
        assert told["files"]["adapter_model.safetensors"]["bytes"] == len(b"weights")
    assert told["destination"] == str(tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()
    assert not (run.path / "published.json").exists()
    assert content(run) == before


def test_receipts_are_appended(tmp_path):
    run = adapter_run(tmp_path)
    for name in ("a", "b"):
        CloudUploader(run).create_zip_backup(tmp_path / f"{name}.zip")
    receipts = json.loads((run.path / "published.json").read_text())["receipts"]
    where = [receipt["destination"] for receipt in receipts]
    assert where == [str(tmp_path / "a.zip"), str(tmp_path / "b.zip")]
    assert receipts[0]["files"]["eval/test.json"]["bytes"] > 0


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("hubb", {}, "nearest: hub"),
        ("hub", {"repo": "one"}, "params.repo"),
        ("hub", {"repo": "a/b", "token": "x"}, "unknown key"),
        ("s3", {"bucket": "b" * 3, "part_bytes": "7"}, "part_bytes"),
        ("s3", {"bucket": "abc", "endpoint_url": "http://me:pw@host"}, "environment"),
        ("gdrive", {"folder": "a' or 'b"}, "params.folder"),
        ("gdrive", {"folder": "a", "endpoint": "http://h?key=1"}, "environment"),
        ("archive", {}, "must be set"),
    ],
)
def test_a_wrong_target_is_told_before_anything_happens(name, params, said):
    with pytest.raises(ConfigError, match=said):
        target_config(name, params)


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)  # as if not installed
    with pytest.raises(PublishingError, match=r"pip install 'loralab\[publish\]'"):
        library("boto3")


class Shelf:
    """A store in memory that fails as told: each entry is one `send`."""

    def __init__(self, failures, one_a_time=False):
        self.failures, self.names = list(failures), set()
        self.one_a_time = one_a_time
        self.sends = 0

    def present(self, files):
        return {file.name for file in files if file.name in self.names}

    def send(self, files, tell):
        self.sends += 1
        if self.one_a_time:
            self.names.add(files[0].name)
        if self.failures:
            raise self.failures.pop(0)
        self.names |= {file.name for file in files}

    def failure(self, error):
        if isinstance(error, ZeroDivisionError):
            return None
        return Failure(isinstance(error, ConnectionError), str(error), "pay the bill")


def deliver(shelf, files=3):
    events = []
    listed = [File(str(i), None, 1, "") for i in range(files)]
    return Delivery(shelf, listed, SOON, events.append).run(), events


def test_it_is_tried_again_on_what_passes():
    shelf = Shelf([ConnectionError("one"), ConnectionError("two")])
    before, events = deliver(shelf)
    assert (before, shelf.sends) == (set(), 3)
    assert [event["left"] for event in events] == [2, 1]


def test_three_failures_in_a_row_are_the_end():
    shelf = Shelf([ConnectionError("cut")] * 3)
    with pytest.raises(PublishingError, match="failed 3 times in a row: cut") as caught:
        deliver(shelf)
    assert "0 of 3 files" in caught.value.why
    assert "repeat" in caught.value.fix


def test_a_file_that_arrives_begins_the_count_anew():
    shelf = Shelf([ConnectionError("cut")] * 4, one_a_time=True)
    deliver(shelf, files=5)
    assert shelf.sends == 5


def test_what_does_not_pass_is_told_at_once():
    shelf = Shelf([ValueError("not allowed")])
    with pytest.raises(PublishingError, match="refused: not allowed") as caught:
        deliver(shelf)
    assert (shelf.sends, caught.value.fix) == (1, "pay the bill")


def test_a_defect_is_not_hidden_as_a_failure():
    with pytest.raises(ZeroDivisionError):
        deliver(Shelf([ZeroDivisionError()]))


def test_an_error_holds_no_secret(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "verysecret")
    with pytest.raises(PublishingError) as caught:
        deliver(Shelf([ValueError("the header verysecret is wrong")]))
    assert "verysecret" not in str(caught.value)


def test_waits_grow_and_are_bounded():
    retry = Retry(first_seconds=1, longest_seconds=4)
    for failures, most in ((1, 1), (2, 2), (3, 4), (9, 4)):
        waits = [retry.wait(failures) for _ in range(50)]
        assert most / 2 <= min(waits) <= max(waits) <= most
        assert len(set(waits)) > 1  # jitter
