"""Text in figures is text: nothing that a user's data say is read as a formula."""

import re
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from matplotlib.text import Text

from stages.report import canvas, datasets, example, names
from tests.miniature import ROOT, edit_row, png

TEXTS = ["$a_{$", "$5 or $10?", r"$\badcmd$", r"\$", "5 % & a_ #1 {x}^~", "犬は何ですか", "What is 🐴?", "a\nb", "\x07"]


def drawn(drawing: canvas.Drawing) -> list[str]:
    """What the figure says; it is drawn both ways, and no text of it is a formula."""
    with matplotlib.rc_context(canvas.STYLE):
        found = drawing.figure.findobj(Text)
    assert not any(text.get_parse_math() for text in found)
    for ending in ("png", "pdf"):
        assert len(canvas.drawn(drawing.figure, ending, {})) > 1000
    return [text.get_text() for text in found]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("said", TEXTS)
def test_the_example_says_questions_and_answers_as_they_are(said: str) -> None:
    edit = edit_row(0) | {"question": said, "answer": f"not {said}", "target": said}
    probe = {
        "edit_id": edit["edit_id"], "method": "balancedit", "probe": "p", "question": said, "image_id": edit["image_id"],
        "answer_off": said, "correct_off": True, "expected": said, "outcome": "target", "target": True, "same": True,
    }  # fmt: skip
    outcomes = pd.DataFrame([probe | {"kind": kind} for kind in example.KINDS])
    images = pd.DataFrame([{"image_id": edit["image_id"], "vendor": "Goog", "png": png("red")}])
    drawing = example.drawing(outcomes, pd.DataFrame([edit]), images, "balancedit")
    shown = drawn(drawing)
    assert f"after: {said} ✓" in shown and drawing.caption.count(said) >= 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("said", TEXTS)
def test_names_of_relations_and_datasets_are_drawn_as_they_are(said: str) -> None:
    splits = {split: {"edits": 1, "relations": {said: 1}} for split in names.SPLITS}
    shown = drawn(datasets.relations({said: {"splits": splits}}))
    assert shown.count(said.replace("_", " ")) >= 1 and said in shown


def test_a_caption_says_what_boxes_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "FOLDER", tmp_path)
    for said, noted in (("What is it? 5 € – α ✓", False), ("犬は", True), ("🐴", True)):
        splits = {split: {"edits": 1, "relations": {said: 1}} for split in names.SPLITS}
        page = canvas.save(datasets.relations({"okedit": {"splits": splits}}), "relations").data
        assert (canvas.BOXES.strip() in re.sub("&#39;", "'", page)) == noted


def test_a_formula_of_matplotlib_itself_stands_in_no_figure() -> None:
    """Ticks of a logarithmic axis are formulas unless they are given as text, as `sequences` gives them."""
    assert canvas.STYLE["text.parse_math"] is False
    logarithmic = [path for path in (ROOT / "stages/report").glob("*.py") if re.search("scale\\(.log|loglog", path.read_text())]
    assert [path.name for path in logarithmic] == ["sequences.py"]
    assert "set_xticks(made := " in logarithmic[0].read_text() and "minorticks_off()" in logarithmic[0].read_text()
