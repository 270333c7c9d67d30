"""What is or may be true of a concept: no counterfactual target is among it, and no answer among it is an error."""

from collections import defaultdict
from pathlib import Path

from ruamel.yaml import YAML

from stages.assets.knowledge import Knowledge
from stages.okedit.validate import normal
from stages.params import UserError

OVERLAPS = Path(__file__).with_name("overlaps.yaml")


def same(one: str, other: str) -> bool:
    """Whether the words of one answer are among the other's: "police car" may be said for "car"."""
    few, many = sorted((set(normal(one).split()), set(normal(other).split())), key=len)
    return bool(few) and few <= many


class Truth:
    """The answers that the table of facts gives to a question about a concept, and those that they do not exclude."""

    def __init__(self, knowledge: Knowledge, overlaps: Path = OVERLAPS):
        """`overlaps` maps a relation to lists of answers that may hold together; UserError names one that is no answer."""
        self.relations = knowledge.relations
        self.name = {c.concept: c.name for c in knowledge.concepts}
        self.namesakes = defaultdict(list)
        for concept, name in self.name.items():
            self.namesakes[name].append(concept)
        listed = YAML(typ="safe", pure=True).load(overlaps.read_text(encoding="utf-8"))
        self.groups = {name: [set(group) for group in groups] for name, groups in listed.items() if name in self.relations}
        for name, groups in self.groups.items():
            for unknown in sorted(set().union(*groups) - set(self.relations[name].facts.values())):
                raise UserError(f"{overlaps.name}: {name}: {unknown!r} is not allowed; allowed: the relation's answers")

    def own(self, relation: str, concept: str) -> set[str]:
        """The relation's answers for the concept and for all others of its plain name."""
        facts = self.relations[relation].facts
        return {facts[c] for c in self.namesakes[self.name[concept]] if c in facts}

    def of(self, relation: str, concept: str) -> set[str]:
        """Answers to the relation's question that are or may be true of the concept.

        Its own; those that may hold together with them; and what other relations and their hops say of it, as a farmer's thing
        may be found on a farm.
        """
        found = self.own(relation, concept)
        found |= {a for group in self.groups.get(relation, []) if group & found for a in group}
        for other in self.relations.values():
            if other.relation != relation:
                answers = self.own(other.relation, concept)
                found |= answers | {hop.answers[a] for hop in other.hops for a in answers}
        return found

    def may_be(self, relation: str, concept: str, answer: str) -> bool:
        """Whether `answer` is or may be true, in these or in more or fewer words."""
        return any(same(answer, true) for true in self.of(relation, concept))
