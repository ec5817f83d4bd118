"""Makes virtual environments for what tests and examples run in Python, pinned by version and hash; begin at `provide`."""

import shutil
import subprocess
import sys
from pathlib import Path

import wheels


def provide(name, folder):
    """Makes `folder` an environment with exactly what requirements/<name>.txt pins, unless it is that already."""
    wheels.require_platform()
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        wheels.fail(f"the pinned packages are for Python 3.11 to 3.13, and this is {sys.version.split()[0]};"
                    " set PYTHON=python3.11 for make")
    requirements = wheels.REQUIREMENTS / f"{name}.txt"
    stamp = wheels.digest(Path(__file__), requirements) + " " + sys.version.split()[0]
    if not wheels.stamped(folder, stamp):
        with wheels.exclusive(name):
            if not wheels.stamped(folder, stamp):
                install(name, folder, requirements)
                (folder / wheels.STAMP).write_text(stamp + "\n")


def install(name, folder, requirements):
    """Builds the environment anew. It holds no pip of its own: the caller's pip fills it."""
    shutil.rmtree(folder, ignore_errors=True)
    wheels.say(f"{name}: installing into {folder.relative_to(wheels.ROOT)}")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    command = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--requirement", str(requirements)]
    if subprocess.run(command, check=False).returncode != 0:
        wheels.fail(f"pip could not install the pins of {requirements.name}; its message is above."
                    " A second run starts afresh")
