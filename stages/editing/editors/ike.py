"""IKE (Zheng et al., EMNLP 2023, section 3): the new fact and demonstrations of how to use one stand before the question.

Demonstrations are made of train edits. Three kinds (section 3.2) teach to `copy` the new fact, to carry it over to a rephrased
question (`update`), and to `retain` the answer to another question, one to three to four of them. The k train edits whose facts
are nearest to the new one (section 3.3, cosine between sentence embeddings) give one each, the nearest standing last. As in
MMEdit (Cheng et al., EMNLP 2023), demonstrations are text alone; the picture is the probe's. Each prompt has the form in which
the model is asked, and the demonstrations come first, so that all probes of an edit share them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stages.backbone.vlm import Backbone
from stages.editing import full_forward, sentences
from stages.editing.edits import Edit, Request
from stages.editing.fitting import Example
from stages.sections import Hyper, count, entry

ORDER = ("retain", "update", "retain", "copy", "update", "retain", "update", "retain")  # 1 : 3 : 4


@dataclass(frozen=True)
class Settings(Hyper):
    """The number of demonstrations k."""

    demonstrations: int = entry(count(0), default=32)


def fit(backbone: Backbone, examples: Sequence[Example], settings: Settings, checkpoint: Path) -> dict[str, Any]:
    """Each train edit's fact, its embedding, and the question and answer of each kind of demonstration it can give."""
    facts, kinds = [], []
    for example in examples:
        row = example.row
        facts.append(fact(row["question"], row["target"]))
        kept = next((p for p in example.probes if p.kind in ("text_only", "unrelated", "other_question") and p.expected), None)
        own = {"copy": [row["question"], row["target"]], "update": [row["rephrasings_train"][0], row["target"]]}
        kinds.append(own | {"retain": [kept.question, kept.expected] if kept else own.copy})
    return {"facts": facts, "kinds": kinds, "embeddings": sentences.embed(facts)}


def edit(backbone: Backbone, request: Request, settings: Settings, fitted: Mapping[str, Any]) -> Edit:
    """No training: the edit is what stands before every prompt."""
    text = context(backbone, request.query.question, request.answer, fitted, settings.demonstrations)
    prefix = tuple(backbone.tokenizer(text, add_special_tokens=False).input_ids)
    return full_forward.measured(backbone, request, Edit(prefix=prefix))


def context(backbone: Backbone, question: str, answer: str, fitted: Mapping[str, Any], k: int) -> str:
    """The demonstrations, the least similar fact first, and the new fact."""
    new = fact(question, answer)
    similar = fitted["embeddings"] @ sentences.embed([new])[0]
    nearest = torch.argsort(similar, descending=True, stable=True)[:k].tolist()
    told = []
    for place, index in reversed(list(enumerate(nearest))):
        asked, said = fitted["kinds"][index][ORDER[place % len(ORDER)]]
        prompt = backbone.adapter.template.replace("{image}", "").replace("{question}", asked)
        told.append(f"New Fact: {fitted['facts'][index]}\nPrompt: {prompt}{said}{backbone.adapter.end}\n\n")
    return "".join(told) + f"New Fact: {new}\nPrompt: "


def fact(question: str, answer: str) -> str:
    """An edit in words."""
    return f"{question} {answer}"
