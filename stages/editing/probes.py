"""The queries that an edit is judged by: its probes, what is expected of each, and the samples that place its radius."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from stages.backbone.vlm import Query

GENERALITY = ("edit", "text_generality", "image_generality", "joint_generality")
POSITIVE = ("sample_positive", "sample_view")  # samples that the edit must reach


@dataclass(frozen=True)
class Probe:
    """One evaluation query: what is expected after the edit, and what was true before it ("" where nothing is)."""

    kind: str
    question: str
    image_id: str | None
    expected: str
    truth: str

    @property
    def is_sample(self) -> bool:
        """Samples locate the radius; they carry distances and no outcome."""
        return self.kind.startswith("sample_")

    @property
    def query(self) -> Query:
        """What the model is asked."""
        return Query(self.question, self.image_id)

    @property
    def must_change(self) -> bool:
        """Whether the edit must change the answer, rather than leave it."""
        return self.kind in GENERALITY or self.kind.startswith("hop")


def probes_of(
    row: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], counts: Mapping[str, int] = MappingProxyType({})
) -> list[Probe]:
    """The queries of one OKEDIT row, the edit first and its samples last: of each kind the first ones, as many as `counts` says,
    and all of the kinds that it does not name.
    """
    question, image, target, truth = row["question"], row["image_id"], row["target"], row["answer"]
    probes = [Probe("edit", question, image, target, truth)]
    probes += [Probe("text_generality", q, image, target, truth) for q in row["rephrasings"]]
    probes += [Probe("image_generality", question, i, target, truth) for i in row["generality_image_ids"]]
    pairs = list(zip(row["rephrasings"], row["generality_image_ids"], strict=False))[::2]
    probes += [Probe("joint_generality", q, i, target, truth) for q, i in pairs]
    probes += [Probe(p["kind"], p["question"], p["image_id"], p["answer"], p["answer"]) for p in row["locality"]]
    probes += [Probe(f"hop{h['n']}", h["question"], h["image_id"], h["answer_after"], h["answer_before"]) for h in row["hops"]]
    kinds = [probe.kind for probe in probes]
    probes = [probe for i, probe in enumerate(probes) if kinds[:i].count(probe.kind) < counts.get(probe.kind, len(kinds))]
    probes += [Probe("black_image", question, s["image_id"], "", "") for s in samples if s["kind"] == "sample_black"]
    return probes + [Probe(s["kind"], s["question"], s["image_id"], "", "") for s in samples]


def normalise(answer: str) -> str:
    """The form in which answers are compared: lower case, stripped."""
    return answer.strip().lower()
