"""The JSON of MMEdit and EasyEdit (Cheng et al., EMNLP 2023): reading it, and exporting a built set to it.

One object an edit: `src` question, `pred` answer before the edit, `alt` target, `rephrase`, `image`, `image_rephrase`; `loc`,
`loc_ans` a question without a picture; `m_loc`, `m_loc_q`, `m_loc_a` one about another picture. An optional
`rephrased_questions_train` holds the rephrasings for positive samples. Pictures are paths relative to a folder. An export's
`pred` is the true answer or, where the edit corrects an error, the first backbone's.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from stages.okedit.photos import is_text, read_json
from stages.okedit.schema import SPLITS, EditRow, Picture
from stages.okedit.validate import Tally, normal
from stages.okedit.wording import words
from stages.params import UserError, write_atomically

FIELDS = (
    "src", "pred", "rephrase", "alt", "image", "image_rephrase", "loc", "loc_ans", "m_loc", "m_loc_q", "m_loc_a",
)  # fmt: skip
PICTURES = ("image", "image_rephrase", "m_loc")
LONGEST_NAME = 200  # bytes of a part of a picture's name; a file system allows 255, and an export adds to it
POSITIVES = "rephrased_questions_train"
# Which locality probe stands for `m_loc`: the first of these kinds whose true answer is known.
M_LOC = ("near_image", "far_image", "unrelated")


def read(key: str, path: Path, tally: Tally) -> list[dict[str, Any]]:
    """The valid records of a file, texts stripped; the others are counted by reason. UserError when it is no list of records."""
    records = read_json(key, path)
    if not isinstance(records, list) or not records:
        raise UserError(f"{key}: {str(path)!r} holds no records; allowed: a JSON list of objects with {', '.join(FIELDS)}")
    found, seen = [], set()
    for i, record in enumerate(records):
        fault = _fault(record)
        if not fault:
            record = {k: v.strip() if isinstance(v, str) else v for k, v in record.items()}
            edit = (record["image"], normal(record["src"]))
            fault = "record: duplicate" if edit in seen else None
            seen.add(edit)
        if fault:
            tally.note(fault, f"{path.name}[{i}]")
        else:
            found.append(record)
    return found


def _fault(record: Any) -> str | None:
    if not isinstance(record, Mapping) or any(name not in record for name in FIELDS):
        return "record: a field is missing"
    positives = record.get(POSITIVES, [])
    if not isinstance(positives, list) or not all(isinstance(t, str) and t.strip() for t in positives):
        return f"record: {POSITIVES} is no list of texts"
    if not all(isinstance(record[name], str) and record[name].strip() for name in FIELDS):
        return "record: a field is no text"
    if not all(map(is_text, [*(record[name] for name in FIELDS), *positives])):
        return "record: a text that is no Unicode"
    places = [PurePosixPath(record[name].strip()) for name in PICTURES]
    if any(place.is_absolute() or ".." in place.parts for place in places):
        return "record: a picture outside the folder"
    if any(len(part.encode()) > LONGEST_NAME for place in places for part in place.parts):
        return "record: a picture's name is too long"
    if all(form(record["pred"]) == form(record["alt"]) for form in (normal, words)):  # "-1" is not "1"
        return "target: equals the answer"
    if normal(record["rephrase"]) == normal(record["src"]):
        return "rephrasing: equals the question"
    return None


def export(folder: Path, rows: Sequence[EditRow], pictures: Sequence[Picture]) -> dict[str, Any]:
    """Write <folder>/<split>.json and the pictures they name; how many edits each holds, and how many were left out by what
    they lack.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    encoded = {p.image_id: p.png for p in pictures}
    edits: dict[str, int] = {}
    left_out: dict[str, int] = {}
    for split in SPLITS:
        records = []
        for row in (r for r in rows if r.split == split):
            record, lacking = _record(row)
            if lacking:
                left_out[lacking] = left_out.get(lacking, 0) + 1
                continue
            for name in PICTURES:
                record[name] = _save(folder, record[name], encoded[record[name]])
            records.append(record)
        edits[split] = len(records)
        with write_atomically(folder / f"{split}.json") as temporary:
            temporary.write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return {"edits": edits, "left_out": left_out}


def _record(row: EditRow) -> tuple[dict[str, Any], str | None]:
    """The record of an edit, its pictures by id, or the field that it cannot fill."""
    about = [p for kind in M_LOC for p in row.locality if p["kind"] == kind and p["answer"]]
    text = [p for p in row.locality if p["kind"] == "text_only" and p["answer"]]
    corrects = row.target.lower() == row.answer.lower()
    pred = row.unedited[0] if corrects else row.answer
    needed = {"rephrase": row.rephrasings, "image_rephrase": row.generality_image_ids, "m_loc": about, "loc": text}
    for name, found in needed.items():
        if not found:
            return {}, name
    record = {
        "src": row.question, "pred": pred, "rephrase": row.rephrasings[0], "alt": row.target, "image": row.image_id,
        "image_rephrase": row.generality_image_ids[0], "loc": text[0]["question"], "loc_ans": text[0]["answer"],
        "m_loc": about[0]["image_id"], "m_loc_q": about[0]["question"], "m_loc_a": about[0]["answer"],
    }  # fmt: skip
    return record | {POSITIVES: list(row.rephrasings_train)}, None


def _save(folder: Path, image_id: str, encoded: bytes) -> str:
    """Write one picture; its path relative to the folder."""
    ending = ".jpg" if encoded.startswith(b"\xff\xd8") else ".png"
    name = f"images/{image_id.removesuffix(ending)}{ending}"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(encoded)
    return name
