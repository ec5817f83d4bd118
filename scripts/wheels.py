"""Puts members of pinned wheels into a folder of third_party/, all or nothing.

Python is only the downloader here: `pip download` fetches, this file unpacks, nothing is installed or imported.
Each setup script says which requirements and which members; begin at `provide`.
"""

import fcntl
import fnmatch
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
THIRD_PARTY = ROOT / "third_party"
REQUIREMENTS = ROOT / "scripts" / "requirements"
STAMP = "nereid.stamp"


def provide(name, members, *, python, platforms, finish=None):
    """Makes third_party/<name> hold `members` of the wheels pinned in requirements/<name>.txt.

    `members` maps a pattern of paths inside the wheels to where it goes: None keeps the path, a folder keeps the
    file's name. `finish(folder)` adds what is not in a wheel. Returns the folder. When the stamp says that nothing has
    changed since the last time, nothing is done.
    """
    folder = THIRD_PARTY / name
    requirements = REQUIREMENTS / f"{name}.txt"
    stamp = digest(Path(sys.argv[0]), Path(__file__), requirements)
    if stamped(folder, stamp):
        return folder
    with exclusive(name):
        if stamped(folder, stamp):
            return folder
        # An interrupted run leaves its folders behind, perhaps with a pip that still writes: they are never used again.
        remove_leftovers(name)
        work = Path(tempfile.mkdtemp(prefix=f".{name}.work-", dir=THIRD_PARTY))
        wheels, partial, old = work / "wheels", work / "partial", work / "old"
        try:
            say(f"{name}: downloading")
            download(requirements, wheels, python, platforms)
            say(f"{name}: unpacking")
            unpack(sorted(wheels.glob("*.whl")), members, partial)
            if finish:
                finish(partial)
            (partial / STAMP).write_text(stamp + "\n")
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
        except KeyboardInterrupt:
            fail(f"{name}: interrupted. A second run starts afresh")
        finally:
            remove_leftovers(name)
        say(f"{name}: ready in {folder.relative_to(ROOT)}")
    return folder


def remove_leftovers(name):
    """Removes what set-ups of `name` keep while they work."""
    for leftover in THIRD_PARTY.glob(f".{name}.work-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def stamped(folder, stamp):
    """Whether `folder` was completed from the same pins by the same script."""
    try:
        return (folder / STAMP).read_text().strip() == stamp
    except OSError:
        return False


def digest(*files):
    """One hash over the contents of `files`."""
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()


@contextmanager
def exclusive(name):
    """Keeps a second set-up of the same thing waiting until the first is done."""
    THIRD_PARTY.mkdir(exist_ok=True)
    with open(THIRD_PARTY / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def download(requirements, into, python, platforms):
    """Fetches exactly the pinned wheels; pip refuses a file whose hash differs."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--only-binary=:all:", "--python-version", python]
    for platform in platforms:
        command += ["--platform", platform]
    command += ["--dest", str(into), "--requirement", str(requirements)]
    if subprocess.run(command, check=False).returncode != 0:
        pinned = requirements.relative_to(ROOT)
        fail(f"pip could not download what {pinned} pins; its message is above. A second run starts afresh")


def unpack(wheels, members, into):
    """Unpacks the members that match; a pattern that matches nothing is an error, since the pins are exact."""
    unmatched = set(members)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for path in archive.namelist():
                pattern = next((each for each in members if fnmatch.fnmatchcase(path, each)), None)
                if pattern is None or path.endswith("/"):
                    continue
                unmatched.discard(pattern)
                target = into / path if members[pattern] is None else into / members[pattern] / Path(path).name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(path) as source, open(target, "wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                if archive.getinfo(path).external_attr >> 16 & 0o111:
                    target.chmod(0o755)
    if unmatched:
        fail(f"the wheels do not hold {', '.join(sorted(unmatched))}")


def say(text):
    """One line of progress, on standard error."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def fail(text):
    """Ends the script with one line that says what to do."""
    sys.exit(f"setup: error: {text}")


def require_platform():
    """The pinned wheels are for Linux on x86-64 only."""
    machine = os.uname()
    if (machine.sysname, machine.machine) != ("Linux", "x86_64"):
        fail(f"the pinned wheels are for Linux x86_64, and this is {machine.sysname} {machine.machine}")
