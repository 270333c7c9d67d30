"""What a reader runs, on a real backbone: the paper's method in 60 lines agrees with the study, and the notebook runs."""

import ast
import io
import json
import runpy
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import balancedit

ROOT = Path(__file__).parent.parent
SCRIPT, NOTEBOOK = ROOT / "examples/balancedit_in_60_lines.py", ROOT / "notebooks/try_it.ipynb"
needs_backbone = pytest.mark.skipif(
    not (ROOT / "data/backbones/llava-smollm2/config.json").exists() or not (ROOT / "data/assets/emoji").is_dir(),
    reason="data/backbones/llava-smollm2 or data/assets is not there; ./study dvc repro backbone@llava-smollm2 makes both",
)
LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


@pytest.fixture(scope="module")
def script() -> Mapping[str, Any]:
    """The names that the script leaves behind."""
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def edited(script: Mapping[str, Any]) -> balancedit.Model:
    """The study's model with the same edit."""
    model = balancedit.open("llava-smollm2")
    model.edit(
        script["PICTURE"], script["QUESTION"], script["ANSWER"], rephrasing=script["REPHRASING"], alpha=script["ALPHA"],
        lr=script["LR"], steps=script["STEPS"], margin=script["MARGIN"],
    )  # fmt: skip
    return model


def test_it_has_60_lines_of_code_and_imports_one_module_of_the_study() -> None:
    source = SCRIPT.read_text()
    tree, code = ast.parse(source), set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            code |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node):
            code -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    assert len(code) <= 60
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in modules if name.startswith(("stages", "balancedit"))} == {"stages.backbone.tower"}


@needs_backbone
def test_key_and_radius_are_the_studys(script: Mapping[str, Any], edited: balancedit.Model) -> None:
    (entry,) = edited.entries
    torch.testing.assert_close(script["key"], entry.key, atol=1e-4, rtol=0)
    found = [float(script[name]) for name in ("positive", "negative", "radius")]
    assert found == pytest.approx([entry.d_plus, entry.d_minus, entry.radius], abs=1e-4)


@needs_backbone
@pytest.mark.parametrize("drawing", ["Goog/U+1F434", "Twtr/U+1F434", "Goog/U+1F431"])
def test_answers_are_the_studys(script: Mapping[str, Any], edited: balancedit.Model, drawing: str) -> None:
    picture = script["DRAWINGS"] / f"{drawing}.png"
    for question in (script["QUESTION"], "What do you see in this picture?"):
        answer = edited.ask(picture, question)
        assert script["ask"](picture, question) == (answer.before, answer.text)


@needs_backbone
def test_the_edit_answers_where_it_should(script: Mapping[str, Any], edited: balancedit.Model) -> None:
    horse, other, cat = (script["DRAWINGS"] / f"{name}.png" for name in ("Goog/U+1F434", "Twtr/U+1F434", "Goog/U+1F431"))
    answers = [
        edited.ask(*query) for query in [(horse, script["QUESTION"]), (other, script["QUESTION"]), (cat, script["QUESTION"])]
    ]
    assert [(one.before, one.text) for one in answers] == [("foal", "kid"), ("foal", "kid"), ("kitten", "kitten")]
    assert answers[2].entry is None and answers[2].distance > answers[2].radius


@needs_backbone
def test_the_notebook_runs() -> None:
    """A cell shows its last line: the answers before, with and without the edit."""
    names: dict[str, Any] = {}
    shown = []
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            *body, last = tree.body
            exec(compile(ast.Module(body, []), NOTEBOOK.name, "exec"), names)
            if isinstance(last, ast.Expr):
                shown.append(eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names))
            else:
                exec(compile(ast.Module([last], []), NOTEBOOK.name, "exec"), names)
    answers = [one for one in shown if isinstance(one, balancedit.Answer)]
    assert [one.text for one in answers[:2]] == ["foal", "kid"] and answers[-1].text == "foal"
