"""What Git keeps of a cell, and whether it may be taken from there: making it takes minutes to an hour.

The stage `plan_edits` writes what a cell is made from (`Planned`); beside what was made stands what it was made from (`Stamp`).
Where the two say the same, the trace is taken. What the traces of all methods share, because it follows from the set and the
unedited model, Git keeps once: reports/traces/<dataset>-<backbone>.parquet. Importing this loads no model library.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from stages import sections
from stages.params import UserError, write_atomically
from stages.sections import readable

MADE, KEPT = Path("data/traces"), Path("reports/traces")
PLANS, STAMPS = Path("data/plans/edits"), Path("data/stamps/edits")
AGAIN = "delete it, and `./study repro` makes it again"
PROBE = ["edit_id", "probe"]  # what a row of a trace is of, beside its seed
UNEDITED = (
    "split", "relation", "concept", "kind", "question", "image_id", "expected", "answer_off", "target_off", "tf_off",
    "correct_off",
)  # fmt: skip  # columns that the traces of all methods share, beside distances


@dataclass(frozen=True)
class Stamp:
    """What a cell was made from (a digest) and with which settings, by which code and on which device. Where other code made it,
    `checked` of its edits were made again by this code, with the same results. `tried` are the lines of reports/tuning.csv that
    come with it, until it is kept.
    """

    made_from: str
    settings: Mapping[str, Any]
    code: str
    device: str
    checked: int = 0
    tried: Sequence[Mapping[str, str]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Stamp":
        found = read_json(path)
        with readable(path, AGAIN):
            return cls(**found)

    def write(self, path: Path) -> None:
        write_json(path, {name: value for name, value in asdict(self).items() if value or name != "tried"})


@dataclass(frozen=True)
class Planned:
    """What a cell would be made from and by, with its settings where they are known, the code that chose them (None where there
    was no choice), and what Git keeps of it: the stamp, and a digest of the files.
    """

    made_from: str
    code: str
    device: str
    settings: Mapping[str, Any] | None
    chosen_by: str | None
    kept: Stamp | None
    content: str | None

    @classmethod
    def read(cls, path: Path) -> "Planned":
        found = read_json(path)
        with readable(path, AGAIN):
            return cls(**found | {"kept": found["kept"] and Stamp(**found["kept"])})

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))

    def fits(self, settings: Mapping[str, Any] | None) -> bool:
        """Whether what Git keeps was made from the same, with these settings, by whatever code."""
        return self.kept is not None and self.kept.made_from == self.made_from and self.kept.settings == settings

    @property
    def stands(self) -> bool:
        """Whether what Git keeps is what would be made."""
        return self.fits(self.settings) and self.kept.code == self.code

    def stamp(self, settings: Mapping[str, Any], tried: Sequence[Mapping[str, str]] = (), checked: int = 0) -> Stamp:
        """The stamp of what is made as planned, or of what Git keeps after a check of some edits."""
        return Stamp(self.made_from, settings, self.code, self.kept.device if checked else self.device, checked, list(tried))


def stamped(path: Path, *files: Path, beside: Sequence[Path] = ()) -> dict[str, Any]:
    """The `kept` and `content` of a plan: None where the stamp at `path` or a file is not there or cannot be read: it is made
    again. `content` is not of the files `beside`, which other cells add to.
    """
    absent = {"kept": None, "content": None}
    if not all(one.exists() for one in (path, *files, *beside)):
        return absent
    try:
        kept = Stamp.read(path)
        for one in (*files, *beside):
            with readable(one, AGAIN), pq.ParquetFile(one) as file:
                file.read()
    except UserError as error:
        print(f"[plan] {error}: what Git keeps of it counts as absent")
        return absent
    content = hashlib.sha256(b"".join(one.read_bytes() for one in files)).hexdigest()[:16]
    return {"kept": kept, "content": content}


def read_json(path: Path) -> dict[str, Any]:
    """A small file; UserError where it is missing."""
    if not path.exists():
        raise UserError(f"{path} is missing; run the stage that writes it first (`dvc repro`)")
    return sections.read_json(path, AGAIN)


def write_json(path: Path, said: Mapping[str, Any]) -> None:
    """A small file that people can read."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def copy(source: Path, target: Path) -> None:
    """Put a file in the place of another; UserError where it is missing."""
    if not source.exists():
        raise UserError(f"trace: {source} is missing; run the `edits` stage first")
    with write_atomically(target) as temporary:
        shutil.copyfile(source, temporary)


def take(name: str, stamp: Stamp) -> None:
    """Take a cell's trace from Git, under `stamp`."""
    write(MADE / f"{name}.parquet", read(name))
    stamp.write(STAMPS / f"{name}.json")
    said = f", checked on {stamp.checked} edits made again by the code of now" if stamp.checked else ""
    print(f"[edits] {name}: as {KEPT / name}.parquet has it{said}")


def keep(name: str) -> Stamp:
    """Put a cell's trace and stamp where Git keeps them, and return the stamp; the same trace is not written again."""
    stamp, path = Stamp.read(STAMPS / f"{name}.json"), MADE / f"{name}.parquet"
    if not path.exists():
        raise UserError(f"trace: {path} is missing; run the `edits` stage first")
    made, (kept, common) = table_of(path), files(name)
    share = shared(made)
    found = made.drop_duplicates(PROBE)[[*PROBE, *share]].sort_values(PROBE, ignore_index=True)
    if (there := kept_at(common)) is not None:
        found = joined(there, found)
    for target, table in ((common, found), (kept, made.drop(columns=share))):
        if (there := kept_at(target)) is None or not there.equals(small(table)):
            write(target, small(table))
    replace(stamp, tried=[]).write(KEPT / f"{name}.json")
    return stamp


def joined(there: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """What methods share, with that of one more: probes that are there already stay as they are, unless they are others now.
    Distances that another process computed differ in their last digits.
    """
    both = found[PROBE].merge(there, on=PROBE, how="left")[found.columns]
    floats = found.select_dtypes("number").columns.difference(PROBE)
    words = found.columns.difference(floats)
    same = (both[words] == found[words]) | (both[words].isna() & found[words].isna())
    close = np.isclose(both[floats].astype(float), found[floats].astype(float), rtol=1e-4, atol=1e-4, equal_nan=True)
    stays = set(found.loc[same.all(axis=1).to_numpy() & close.all(axis=1), "edit_id"])
    new = found[~found["edit_id"].isin(stays)]
    others = there[~there["edit_id"].isin(new["edit_id"])]
    return pd.concat([others, new], ignore_index=True).sort_values(PROBE, ignore_index=True)


def shared(table: pd.DataFrame) -> list[str]:
    """The columns of a trace that the traces of all methods share."""
    return [column for column in table if column in UNEDITED or column.startswith(("euclidean_", "cosine_"))]


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """A trace with its columns as `read` has them: first those that are shared."""
    return table[[*shared(table), *table.columns.difference(shared(table), sort=False)]]


def read(name: str) -> pd.DataFrame:
    """A cell's whole trace as Git has it."""
    own, common = map(table_of, files(name))
    whole = own.merge(common, on=PROBE, how="left", validate="many_to_one")
    floats = [column for column in whole if whole[column].dtype == np.float32]
    return in_order(whole).astype(dict.fromkeys(floats, np.float64))


def table_of(path: Path) -> pd.DataFrame:
    """A table; UserError where it is missing, cut or foreign."""
    with readable(path, AGAIN):
        return pd.read_parquet(path)


def kept_at(path: Path) -> pd.DataFrame | None:
    """A table that Git keeps, None where it is not there or cannot be read: then it is written anew."""
    try:
        return table_of(path) if path.exists() else None
    except UserError:
        return None


def files(name: str) -> list[Path]:
    """Where Git keeps a cell's trace: what is its own, and what it shares with other methods."""
    return [KEPT / f"{name}.parquet", KEPT / f"{name.rsplit('-', 1)[0]}.parquet"]


def small(table: pd.DataFrame) -> pd.DataFrame:
    """A table with float32 wherever that loses nothing."""
    floats = table.select_dtypes("float64")
    exact = [c for c in floats if (floats[c].astype(np.float32).astype(np.float64).eq(floats[c]) | floats[c].isna()).all()]
    return table.astype(dict.fromkeys(exact, np.float32))


def write(path: Path, table: pd.DataFrame) -> None:
    """A table as a file."""
    with write_atomically(path) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd")
