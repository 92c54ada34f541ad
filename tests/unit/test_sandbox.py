import socket
import subprocess
import sys
import time

import pytest

from loralab.evaluation import sandbox
from loralab.evaluation.sandbox import Limits, namespaces, run_program

QUICK = Limits(seconds=2.0, memory_mb=256)
LAYERS = ["with namespaces", "hook and limits only"]


@pytest.fixture(params=LAYERS, autouse=True)
def layer(request, monkeypatch):
    if request.param == LAYERS[1]:
        monkeypatch.setenv("PATH", "")  # so `unshare` is not found
    namespaces.cache_clear()
    if request.param == LAYERS[0] and not namespaces():
        pytest.skip("this machine permits no user namespaces")
    yield request.param
    namespaces.cache_clear()


def reason(source, limits=QUICK):
    found = run_program(source, limits)
    assert found.passed == (found.reason == "passed")
    return found.reason


def test_a_right_program_passes_and_a_wrong_one_does_not():
    assert reason("def f(x):\n    return x + 1\nassert f(1) == 2") == "passed"
    assert reason("def f(x):\n    return x\nassert f(1) == 2") == "AssertionError"
    assert reason("def f(:") == "SyntaxError"


@pytest.mark.parametrize(
    "leave",
    [
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "exit()",
        "import os; os._exit(0)",
        "import os, signal; signal.raise_signal(signal.SIGKILL)",
    ],
)
def test_leaving_early_is_no_pass(leave):
    assert reason(f"{leave}\nassert False") != "passed"


def test_what_a_program_prints_is_no_pass():
    source = """
import os
print("passed", flush=True)
for descriptor in range(64):
    try: os.write(descriptor, b"passed" * 99)
    except OSError: pass
assert False
"""
    assert reason(source) != "passed"


def test_an_endless_loop_and_a_long_sleep_are_ended():
    for source in ("while True: pass", "import time; time.sleep(60)"):
        start = time.monotonic()
        assert reason(source, Limits(seconds=0.5)) in ("timed out", "died")
        assert time.monotonic() - start < 5


def test_signals_cannot_be_ignored():
    source = "import signal\nfor s in (2, 15, 24): signal.signal(s, signal.SIG_IGN)\n"
    start = time.monotonic()
    assert reason(source + "while True: pass", Limits(seconds=0.5)) == "timed out"
    assert time.monotonic() - start < 5


@pytest.mark.skipif(sys.platform != "linux", reason="macOS keeps no such limit")
def test_a_memory_bomb_fails():
    assert reason("x = bytearray(300 << 20)") == "MemoryError"
    assert reason("x = bytearray(300 << 20)", Limits(memory_mb=600)) == "passed"


@pytest.mark.parametrize(
    "start",
    [
        "import os\nwhile True: os.fork()",
        "import os; os.system('true')",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.kill(os.getppid(), 9)",
        "import ctypes; ctypes.CDLL(None)",
        "import threading; threading.Thread(target=print).start()",
    ],
)
def test_other_processes_are_refused(start):
    assert reason(start) == "PermissionError"


def test_sockets_are_refused():
    assert reason("import socket; socket.socket()") == "PermissionError"
    assert reason("import socket; socket.getaddrinfo('localhost', 1)") != "passed"
    ask = "import urllib.request as u; u.urlopen('http://127.0.0.1:1')"
    assert reason(ask) in ("PermissionError", "URLError")


def test_files_may_be_changed_within_the_directory_only(tmp_path):
    within = """
import os
with open("a", "w") as file: file.write("x")
os.mkdir("d"); os.rename("a", "d/b"); assert open("d/b").read() == "x"
os.remove("d/b"); os.rmdir("d"); assert os.listdir() == []
"""
    assert reason(within) == "passed"
    mine = tmp_path / "mine"
    mine.write_text("mine")
    for change in (
        f"open({str(mine)!r}, 'w')",
        f"open({str(mine)!r}, 'r+')",
        f"open({str(tmp_path / 'new')!r}, 'x')",
        f"import os; os.open({str(tmp_path / 'new')!r}, os.O_CREAT | os.O_WRONLY)",
        f"import os; os.remove({str(mine)!r})",
        f"import os; os.rename({str(mine)!r}, 'here')",
        f"import os; os.symlink({str(mine)!r}, 'link'); open('link', 'w')",
        f"import os; os.truncate({str(mine)!r}, 0)",
        f"import os; os.chmod({str(mine)!r}, 0)",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        f"import os; os.chdir({str(tmp_path)!r})",
        f"import os; d = os.open({str(tmp_path)!r}, 0); os.remove('mine', dir_fd=d)",
    ):
        assert reason(change) == "PermissionError", change
    assert mine.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [mine]


def test_a_file_cannot_grow_without_bound():
    assert reason("open('big', 'wb').write(bytes(20 << 20))") in ("OSError", "died")


def test_nothing_of_the_environment_is_seen(monkeypatch):
    monkeypatch.setenv("LORALAB_TEST_SECRET", "hush")
    source = "import os; assert 'LORALAB_TEST_SECRET' not in os.environ"
    assert reason(source) == "passed"
    assert reason("import numpy") == "ModuleNotFoundError"  # no site-packages


def test_each_program_has_an_empty_directory_that_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    source = "import os; assert os.listdir() == []; open('left', 'w').write('x')"
    assert [reason(source), reason(source)] == ["passed", "passed"]
    assert list(tmp_path.iterdir()) == []


def test_a_program_in_namespaces_has_no_network(layer):
    if layer != LAYERS[0]:
        pytest.skip("is about namespaces")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        source = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        command = [sys.executable, "-I", "-S", "-c", source]
        assert subprocess.run(command, check=False).returncode == 0
        inside = subprocess.run([*namespaces(), *command], check=False, stderr=-3)
        assert inside.returncode == 1  # without any hook


def test_nothing_outlives_a_program_in_namespaces(layer, tmp_path):
    if layer != LAYERS[0]:
        pytest.skip("is about namespaces")
    beat = tmp_path / "beat"
    source = f"""
import os, time
os.setsid()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            with open({str(beat)!r}, "a") as file: file.write("x")
            time.sleep(0.01)
time.sleep(60)
"""
    command = [*namespaces(), sys.executable, "-I", "-S", "-c", source]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 20
    while not beat.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert beat.exists()
    sandbox._kill(process)
    time.sleep(0.3)
    size = beat.stat().st_size
    time.sleep(0.3)
    assert beat.stat().st_size == size
