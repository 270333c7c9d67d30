"""Per-edit records of a long run, so that an interruption loses at most the edit in progress."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from stages.params import UserError, write_atomically


class Records:
    """A folder of JSON records, valid for one fingerprint of the inputs, under an exclusive lock.

    Opening it with other inputs throws old records away; leaving it without an error removes it.
    Raises UserError when another process holds it.
    """

    def __init__(self, folder: Path, made_from: str):
        self.folder, self.digest = folder, hashlib.sha256(made_from.encode()).hexdigest()

    def __enter__(self) -> "Records":
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self.folder.with_suffix(".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{self.folder}: another run is writing here; wait for it or stop it") from None
        stamp = self.folder / "inputs"
        if not stamp.exists() or stamp.read_text() != self.digest:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            stamp.write_text(self.digest)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            shutil.rmtree(self.folder)
        self._lock.close()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def __getitem__(self, name: str) -> list[dict[str, Any]]:
        return json.loads(self._path(name).read_text())

    def __setitem__(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        with write_atomically(self._path(name)) as temporary:
            temporary.write_text(json.dumps(list(rows)))
