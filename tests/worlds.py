"""A small world for each source of edits, of drawings or of photos, and the edits built in it (`rows_of_<source>`)."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from stages.assets.knowledge import Concept, Hop, Knowledge
from stages.backbone.corpus import TRAINING_TEXTS
from stages.backbone.tower import EfficientNetLiteConfig, EfficientNetLiteTower
from stages.backbone.vlm import Backbone
from stages.okedit import easyedit, positives
from stages.okedit.sources import embedded, evqa, mmedit, okvqa
from stages.okedit.sources.embedded import VENDORS
from stages.okedit.unedited import Unedited
from stages.settings import Dataset
from tests.sources import dataset, png, relation_of

LEGS = {
    "cat": "four", "dog": "four", "cow": "four", "pig": "four", "ram": "four", "elk": "four", "fox": "four", "yak": "four",
    "hen": "two", "owl": "two", "gull": "two", "emu": "two", "kiwi": "two", "crow": "two", "duck": "two",
    "ant": "six", "bee": "six", "wasp": "six", "moth": "six", "gnat": "six", "fly": "six",
    "eel": "none", "cod": "none", "ray": "none", "asp": "none", "orca": "none", "worm": "none",
}  # fmt: skip
DATASET = Dataset(
    name="small", source="embedded", test=4, dev=2, train=2, near=2, far=2, other_question=1, unrelated=2, text_only=2
)


def unedited(*backbones: Backbone) -> list[Unedited]:
    """Backbones of which nothing is known yet."""
    return [Unedited(f"tiny {i}", lambda opened=one: opened) for i, one in enumerate(backbones)]


# -- drawings ----------------------------------------------------------------------------------------------------------------


@pytest.fixture()
def knowledge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Knowledge:
    concepts = tuple(Concept(c, c, "Animals", f"U+{i:04X}") for i, c in enumerate(LEGS))
    halves = {"four": "two", "two": "one", "six": "three", "none": "none"}
    homes = {"four": "land", "two": "air", "six": "hive", "none": "sea"}
    relations = {
        "legs": relation_of("legs", LEGS, (Hop(1, "Half of its legs?", halves),)),
        "home": relation_of("home", {c: homes[a] for c, a in LEGS.items()}),
        "name": relation_of("name", {c: c for c in LEGS}),
    }
    (tmp_path / "positives.yaml").write_text(json.dumps({r: [f"{r}, put in way {i}?" for i in range(3)] for r in relations}))
    monkeypatch.setattr(positives, "FILE", tmp_path / "positives.yaml")
    return Knowledge(concepts, relations)


@pytest.fixture(scope="session")
def tower() -> dict[str, torch.Tensor]:
    """Weights in place of ImageNet's."""
    torch.manual_seed(0)
    return EfficientNetLiteTower(EfficientNetLiteConfig()).net.state_dict()


@pytest.fixture()
def assets(tmp_path: Path, knowledge: Knowledge, tower: dict[str, torch.Tensor]) -> Path:
    torch.save(tower, tmp_path / "efficientnet-lite0.pth")
    rng = np.random.default_rng(0)
    for vendor in VENDORS:
        (tmp_path / "emoji" / vendor).mkdir(parents=True)
        for concept in knowledge.concepts:
            pixels = rng.integers(0, 256, (72, 72, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "emoji" / vendor / f"{concept.code_point}.png")
    asked = [{"question": f"question {i}", "answers": [f"answer {i}"]} for i in range(TRAINING_TEXTS + 20)]
    pq.write_table(pa.Table.from_pylist(asked), tmp_path / "nq_open.parquet")
    return tmp_path


@pytest.fixture()
def rows_of_embedded(knowledge: Knowledge, assets: Path, backbone: Backbone):
    return embedded.build(DATASET, knowledge, assets, unedited(backbone), seed=0)[0]


@pytest.fixture()
def rows_of_evqa(knowledge: Knowledge, assets: Path, backbone: Backbone):
    return evqa.build(DATASET, knowledge, assets, unedited(backbone), seed=0)[0]


# -- photos ------------------------------------------------------------------------------------------------------------------


@pytest.fixture()
def vqa(real: Path, tmp_path: Path) -> Path:
    """Folder with real photos under the names that 40 real E-VQA records ask for; eval.json holds the records."""
    records = json.loads((real / "mmedit/vqa_eval.json").read_text())[:40]
    shown = sorted(real.glob("images/*.jpg"))
    named = sorted({r[name] for r in records for name in easyedit.PICTURES})
    for i, name in enumerate(named):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo = Image.open(shown[i % len(shown)]).convert("RGB")
        photo.rotate(i, expand=True).resize((80, 60)).save(tmp_path / name, "JPEG")
    (tmp_path / "eval.json").write_text(json.dumps(records))
    return tmp_path


def build_mmedit(folder: Path, backbone, **entries: Any):
    entries = {"source": "mmedit", "evaluation": str(folder / "eval.json"), "images": str(folder), "train": 0} | entries
    return mmedit.build(dataset(**entries), None, Path("none"), unedited(backbone), seed=0)


@pytest.fixture()
def rows_of_mmedit(vqa: Path, backbone: Backbone):
    records = json.loads((vqa / "eval.json").read_text())
    (vqa / "eval.json").write_text(json.dumps(records[:30]))
    (vqa / "train.json").write_text(json.dumps(records[30:]))
    return build_mmedit(vqa, backbone, test=12, dev=5, train=3, training=str(vqa / "train.json"), near=1, far=1)[0]


def official(real: Path, folder: Path) -> tuple[Path, Path]:
    """OK-VQA's real question file, and its real answers in the official annotation file's shape."""
    questions = real / "okvqa/OpenEnded_mscoco_val2014_questions.json"
    records = json.loads((real / "okvqa/okvqa_val.json").read_text())
    annotations = [
        {
            "question_id": r["question_id"],
            "image_id": int(r["image"][-16:-4]),
            "question_type": "eight" if i % 2 else "four",
            "answers": [{"answer_id": j + 1, "raw_answer": a, "answer": a} for j, a in enumerate(r["answer"])],
        }
        for i, r in enumerate(records)
    ]
    types = {"four": "Sports and Recreation", "eight": "Plants and Animals"}
    path = folder / "mscoco_val2014_annotations.json"
    path.write_text(json.dumps({"question_types": types, "annotations": annotations}))
    return questions, path


def answers(prompt: str) -> str:
    """What a good text provider says."""
    if "different ways" in prompt:
        question = re.search(r"Question: (.*)", prompt).group(1)
        count = int(re.search(r"Write (\d+)", prompt).group(1))
        return "\n".join(f"{i + 1}. Put in way {i}, {question}" for i in range(count))
    return "A third thing." if "third" in prompt else "something else"


@pytest.fixture()
def coco(real: Path, tmp_path: Path, endpoint, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Entries of a dataset of the four OK-VQA questions whose real photos are there, with pictures from a folder."""
    monkeypatch.chdir(tmp_path)
    endpoint.says = answers
    questions, annotations = official(real, tmp_path)
    for i, question_id in enumerate(("425", "3285", "6615", "3355855")):
        (tmp_path / "drawn" / question_id).mkdir(parents=True)
        for j in range(3):
            (tmp_path / f"drawn/{question_id}/generality-{j}.png").write_bytes(png(10 * i + j))
        (tmp_path / f"drawn/{question_id}/locality-0.png").write_bytes(png(10 * i + 9))
    questions_asked = [{"question": f"question {i}", "answers": [f"answer {i}"]} for i in range(TRAINING_TEXTS + 9)]
    pq.write_table(pa.Table.from_pylist(questions_asked), tmp_path / "nq_open.parquet")
    return {
        "source": "okvqa", "questions": str(questions), "annotations": str(annotations), "images": [str(real / "images")],
        "text": {"provider": "openai", "model": "m", "url": endpoint.url, "retries": 1, "wait": 0},
        "image": {"provider": "folder", "folder": str(tmp_path / "drawn")}, "generality": 3, "side": 160,
        "near": 2, "far": 1, "unrelated": 1, "text_only": 2,
    }  # fmt: skip


def build_okvqa(entries: Mapping[str, Any], backbone):
    return okvqa.build(dataset(**entries), None, Path(), unedited(backbone), seed=0)


@pytest.fixture()
def rows_of_okvqa(coco: dict[str, Any], backbone: Backbone):
    return build_okvqa(coco, backbone)[0]
