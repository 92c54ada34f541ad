import logging
import re
import subprocess
import sys
import time
import warnings

import pytest
from tests.cli import loralab
from tests.conftest import CLASSIFY

from loralab import compose, train
from loralab.cli.render import log_to_stderr
from loralab.errors import TrainingError
from loralab.logs import LIBRARIES, libraries, logger, redact, run_log
from loralab.models.quiet import quiet_libraries

SECRET = "tr0ub4dor-and-3"
ours = logging.getLogger("loralab.something")
LINE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) loralab\S*: "


def state():
    names = ("loralab", "py.warnings", *LIBRARIES)
    found = [logging.getLogger(name) for name in names]
    loggers = [(x.name, x.handlers[:], x.level, x.propagate) for x in found]
    return loggers, warnings.showwarning, warnings.filters[:]


def test_a_run_log_is_appended_to_and_has_times_in_utc(tmp_path, monkeypatch):
    file = tmp_path / "log.txt"
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        for text in ("one", "two"):
            with run_log(file):
                ours.info(text)
                ours.debug("hidden")
    finally:
        monkeypatch.undo()
        time.tzset()
    lines = file.read_text("utf-8").splitlines()
    assert [re.sub(LINE, "", line) for line in lines] == ["one", "two"]
    assert lines[0][:13] == time.strftime("%Y-%m-%dT%H", time.gmtime())
    ours.warning("after")
    assert "after" not in file.read_text("utf-8")


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_everything_is_restored(tmp_path, error):
    import transformers  # noqa: F401  (it configures its own logger)

    before = state()
    try:
        with run_log(tmp_path / "log.txt"), quiet_libraries():
            assert state() != before
            if error:
                raise error("boom")
    except (ValueError, KeyboardInterrupt):
        pass
    assert state() == before


def test_an_error_is_written_with_its_traceback_and_goes_on(tmp_path, capsys):
    file = tmp_path / "log.txt"
    with pytest.raises(ZeroDivisionError), run_log(file):
        _ = 1 / 0
    text = file.read_text("utf-8")
    assert "ERROR loralab: ended by ZeroDivisionError" in text
    assert "_ = 1 / 0" in text
    assert capsys.readouterr() == ("", "")


def test_what_libraries_say_goes_to_the_log_and_not_to_the_console(tmp_path, capsys):
    from transformers.utils import logging as theirs

    file = tmp_path / "log.txt"
    with run_log(file):
        for context in (None, quiet_libraries()):
            name = "inner" if context else "outer"
            with context or warnings.catch_warnings():
                theirs.get_logger("transformers.x").warning("\x1b[1mnew head %s", name)
                theirs.get_logger("transformers.x").info("chatter")
                logging.getLogger("peft.tuners").warning("odd rank %s", name)
                warnings.warn(f"old way {name}", stacklevel=1)
    text = file.read_text("utf-8")
    for name in ("inner", "outer"):
        assert f"loralab.libraries: transformers.x: new head {name}" in text
        assert f"loralab.libraries: peft.tuners: odd rank {name}" in text
        assert f"UserWarning: old way {name} (test_logs.py:" in text
    assert "chatter" not in text
    assert "\x1b" not in text
    assert capsys.readouterr() == ("", "")


def test_lines_from_before_the_directory_existed_are_in_the_log(tmp_path):
    file = tmp_path / "log.txt"
    ours.warning("of an earlier run")
    time.sleep(0.01)
    began = time.time()
    with quiet_libraries():
        warnings.warn("while loading", stacklevel=1)
    with run_log(file, since=began):
        ours.info("now")
    text = file.read_text("utf-8")
    assert text.index("while loading") < text.index("now")
    assert "earlier" not in text


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "WANDB_API_KEY", "aws_secret", "AWS_SECRET", "PGPASSWORD"]
)
def test_secrets_are_not_written(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, SECRET)
    file = tmp_path / "log.txt"
    with pytest.raises(ValueError, match=SECRET), run_log(file):
        ours.info("sent %s to %s", SECRET, {"key": SECRET})
        warnings.warn(f"key {SECRET} refused", stacklevel=1)
        raise ValueError(f"bad key {SECRET}")
    text = file.read_text("utf-8")
    assert SECRET not in text
    assert "sent *** to {'key': '***'}" in text
    assert "ValueError: bad key ***" in text


def test_ordinary_variables_and_short_values_are_left(monkeypatch):
    monkeypatch.setenv("GREETING", "good morning")
    monkeypatch.setenv("SORT_KEY", "name")
    assert redact("good morning, name") == "good morning, name"


def test_a_secret_that_begins_another_does_not_leave_the_rest(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_TOKEN", "abcdefgh-and-more")
    assert redact("abcdefgh-and-more abcdefgh") == "*** ***"


def test_the_level_can_be_given_or_follows_the_logger(tmp_path):
    file = tmp_path / "log.txt"
    with run_log(file, level=logging.ERROR):
        ours.warning("not this")
    logger.setLevel(logging.DEBUG)
    try:
        with run_log(file):
            ours.debug("but this")
    finally:
        logger.setLevel(logging.NOTSET)
    text = file.read_text("utf-8")
    assert "not this" not in text and "but this" in text


def test_the_command_line_shows_lines_of_a_level_on_stderr(capsys, monkeypatch):
    monkeypatch.setenv("X_TOKEN", SECRET)
    for level, wanted in (
        ("warning", {"w"}),
        ("info", {"w", "i"}),
        ("debug", {"w", "i", "d", "lib"}),
    ):
        end = log_to_stderr(level)
        ours.debug("line-d")
        ours.info("line-i %s", SECRET)
        ours.warning("line-w")
        libraries.warning("line-lib")
        end()
        ours.warning("line-after")
        out, err = capsys.readouterr()
        assert out == ""
        assert set(re.findall(r"line-(\w+)", err)) == wanted
        assert SECRET not in err
    assert logger.level == logging.NOTSET


def test_the_option_stands_before_the_verb(tmp_path):
    done = loralab("--log-level", "loud", "runs")
    assert done.code == 2
    assert "debug" in done.err
    done = loralab("--log-level", "debug", "runs", "--runs-dir", tmp_path)
    assert done.code == 0
    assert "--log-level" in loralab("--help").out


def test_help_needs_no_deep_learning_library():
    code = (
        "import sys; sys.argv = ['loralab', '--help']\n"
        "from loralab.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'tensorboard'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_training_writes_its_log(minilm_run):
    text = (minilm_run.path / "log.txt").read_text("utf-8")
    steps = ["LOAD REPORT", "plan {", "training begins", "evaluated {", "complete {"]
    places = [text.index(step) for step in steps]
    assert places == sorted(places)
    assert "Traceback" not in text


def test_a_failed_training_has_its_traceback_in_the_log(tmp_path):
    wild = ["training.learning_rate=1e30", "training.optim=sgd"]
    with pytest.raises(TrainingError):
        train(compose("trec-6", [*CLASSIFY, *wild]), tmp_path)
    (file,) = tmp_path.glob("*/log.txt")
    text = file.read_text("utf-8")
    assert "ended by TrainingError" in text
    assert "compute_loss" in text
