"""Phrasings of a relation's question for positive samples and train edits: positives.yaml."""

from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML

from stages.assets.knowledge import Knowledge
from stages.okedit.validate import normal
from stages.params import UserError
from stages.settings import POSITIVES

FILE = Path(__file__).with_suffix(".yaml")


def positives(knowledge: Knowledge, file: Path | None = None) -> Mapping[str, tuple[str, ...]]:
    """Relation → its phrasings. UserError names one that the table of facts has too, where backbones are trained on it or probes
    ask it, or that stands there twice, and a relation that has too few.
    """
    file = file or FILE
    listed = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    relations = knowledge.relations.values()
    taken = {normal(q): "the table of facts" for r in relations for q in (r.question, *r.rephrasings_train, *r.rephrasings)}
    for relation in relations:
        found = listed.get(relation.relation, [])
        if len(found) < POSITIVES:
            raise UserError(f"{file.name}: {relation.relation}: {len(found)} phrasings; needed: {POSITIVES} or more")
        for question in found:
            if (where := taken.setdefault(normal(question), relation.relation)) != relation.relation or found.count(question) > 1:
                raise UserError(f"{file.name}: {relation.relation}: {question!r} is not allowed: it is also in {where}")
    return {relation.relation: tuple(listed[relation.relation]) for relation in relations}
