"""The table of facts: concepts, their plain names and, for each relation, questions and answers (§5).

Everything is read from stages/assets/knowledge/: concepts.json, names.csv and one <relation>.yaml a relation.
The relation `name` asks what a picture shows; its file says `facts: names.csv`, as the answers are the names.
"""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.params import UserError

FOLDER = Path(__file__).with_suffix("")
TRAIN_REPHRASINGS = 3
REPHRASINGS = 10
LONGEST_ANSWER = 3  # words
NAMES = "names.csv"


@dataclass(frozen=True)
class Concept:
    """A thing that seven artists drew; `concept` is its identifier, `name` what a person would call it."""

    concept: str
    name: str
    category: str
    code_point: str


@dataclass(frozen=True)
class Hop:
    """A question about a relation's answer, never about the picture; `answers` has one entry an answer."""

    n: int
    question: str
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Relation:
    """One kind of fact: 14 phrasings of its question and the answer for each concept it is about."""

    relation: str
    answer_type: str
    question: str
    rephrasings_train: tuple[str, ...]
    rephrasings: tuple[str, ...]
    facts: Mapping[str, str]
    hops: tuple[Hop, ...]


@dataclass(frozen=True)
class Knowledge:
    """All concepts, in the order of concepts.json, and all relations, by name in alphabetical order."""

    concepts: tuple[Concept, ...]
    relations: Mapping[str, Relation]


def load(folder: Path = FOLDER) -> Knowledge:
    """Read and validate the whole table; any fault is a UserError of one line."""
    concepts = read_concepts(folder)
    names = {concept.concept: concept.name for concept in concepts}
    relations = {path.stem: read_relation(path, names) for path in sorted(folder.glob("*.yaml"))}
    owner: dict[str, str] = {}
    for relation in relations.values():
        for question in (relation.question, *relation.rephrasings_train, *relation.rephrasings):
            if owner.setdefault(question.lower(), relation.relation) != relation.relation:
                other = owner[question.lower()]
                raise UserError(f"{relation.relation}.yaml: {question!r} is also in {other}.yaml")
    return Knowledge(concepts, relations)


def read_concepts(folder: Path = FOLDER) -> tuple[Concept, ...]:
    """The concepts of concepts.json, in its order, with the plain names of names.csv (concept,name)."""
    listed = _read_listed(folder / "concepts.json")
    names = _read_names(folder / NAMES, {concept for concept, _, _ in listed})
    return tuple(Concept(concept, names[concept], category, code) for concept, category, code in listed)


def code_points(folder: Path = FOLDER) -> list[str]:
    """The Unicode name U+XXXX[-U+XXXX...] of each concept, in the order of concepts.json."""
    return [code for _, _, code in _read_listed(folder / "concepts.json")]


def _read_listed(path: Path) -> list[tuple[str, str, str]]:
    try:
        rows = json.loads(_text(path))
        listed = [(row["name"], row["category"], row["code_point"]) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: needs a list of {{name, category, code_point}}: {error!r}") from error
    for i, part in enumerate(("name", "category", "code_point")):
        for row in listed:
            _string(path, part, row[i])
    _need_unique(path, (concept for concept, _, _ in listed))
    _need_unique(path, (code for _, _, code in listed))
    return listed


def _read_names(path: Path, known: set[str]) -> dict[str, str]:
    rows = list(csv.reader(_text(path).splitlines()))
    if not rows or rows[0] != ["concept", "name"]:
        raise UserError(f"{path}: its first line must be concept,name")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != 2 or row[0] not in known or not row[1].strip():
            raise UserError(f"{path}: line {number}: {row} is not a concept of concepts.json and its name")
    _need_unique(path, (row[0] for row in rows[1:]))
    names = {concept: name.strip() for concept, name in rows[1:]}
    if missing := sorted(known - names.keys()):
        raise UserError(f"{path}: {missing[0]!r} has no name ({len(missing)} missing)")
    return names


def read_relation(path: Path, names: Mapping[str, str]) -> Relation:
    """One relation file; `names` has the concepts it may speak of and their plain names."""
    try:
        raw = YAML(typ="safe", pure=True).load(_text(path))
    except YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    _need_keys(path, raw, ("answer_type", "question", "rephrasings_train", "rephrasings", "facts"), ("hops",))
    facts = dict(names) if raw["facts"] == NAMES else _answers(path, "facts", raw["facts"])
    if unknown := sorted(facts.keys() - names.keys()):
        raise UserError(f"{path}: facts: {unknown[0]!r} is not a concept of concepts.json")
    if len(set(facts.values())) < 2:
        raise UserError(f"{path}: facts: needs two different answers, so that one can be edited to the other")
    relation = Relation(
        relation=path.stem,
        answer_type=_string(path, "answer_type", raw["answer_type"]),
        question=_question(path, "question", raw["question"]),
        rephrasings_train=_questions(path, "rephrasings_train", raw["rephrasings_train"], TRAIN_REPHRASINGS),
        rephrasings=_questions(path, "rephrasings", raw["rephrasings"], REPHRASINGS),
        facts=facts,
        hops=_hops(path, raw.get("hops", []), set(facts.values())),
    )
    phrasings = (relation.question, *relation.rephrasings_train, *relation.rephrasings)
    _need_unique(path, (question.lower() for question in phrasings))
    return relation


def _hops(path: Path, raw: Any, answers: set[str]) -> tuple[Hop, ...]:
    if not isinstance(raw, list):
        raise UserError(f"{path}: hops: needs a list")
    hops = []
    for number, hop in enumerate(raw):
        at = f"hops[{number}]"
        _need_keys(path, hop, ("n", "question", "answers"), at=at)
        if hop["n"] not in (1, 2) or isinstance(hop["n"], bool):
            raise UserError(f"{path}: {at}.n: {hop['n']!r} is not allowed; allowed: 1, 2")
        given = _answers(path, f"{at}.answers", hop["answers"])
        if given.keys() != answers:
            odd = sorted(given.keys() ^ answers)[0]
            raise UserError(f"{path}: {at}.answers: {odd!r} must be an answer in facts and have an entry")
        hops.append(Hop(hop["n"], _question(path, f"{at}.question", hop["question"]), given))
    return tuple(hops)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def _need_keys(path: Path, raw: Any, needed: tuple[str, ...], optional: tuple[str, ...] = (), at: str = "file") -> None:
    if not isinstance(raw, Mapping) or not set(needed) <= raw.keys() <= {*needed, *optional}:
        found = ", ".join(map(str, raw)) if isinstance(raw, Mapping) else repr(raw)
        allowed = ", ".join(needed) + "".join(f", {key} (optional)" for key in optional)
        raise UserError(f"{path}: {at}: keys are {found}; allowed: {allowed}")


def _need_unique(path: Path, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise UserError(f"{path}: {value!r} stands there twice")
        seen.add(value)


def _string(path: Path, at: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{path}: {at}: {value!r} is not allowed; allowed: text (quote yes, no and numbers)")
    return value.strip()


def _question(path: Path, at: str, value: Any) -> str:
    text = _string(path, at, value)
    if not text.endswith("?"):
        raise UserError(f"{path}: {at}: {text!r} must end with a question mark")
    return text


def _questions(path: Path, at: str, value: Any, count: int) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) != count:
        raise UserError(f"{path}: {at}: needs a list of exactly {count} questions")
    return tuple(_question(path, at, question) for question in value)


def _answers(path: Path, at: str, value: Any) -> dict[str, str]:
    """A mapping from text to a short answer; a number or a yes/no among the keys is a forgotten quote."""
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{path}: {at}: needs at least one `text: answer` line")
    answers = {_string(path, at, key): _string(path, f"{at}.{key}", answer) for key, answer in value.items()}
    for key, answer in answers.items():
        if len(answer.split()) > LONGEST_ANSWER:
            raise UserError(f"{path}: {at}.{key}: {answer!r} is longer than {LONGEST_ANSWER} words")
    return answers
