"""Names and order of methods, metrics, kinds and artists in every figure and table; what each report makes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stages.params import UserError

METHODS = {
    "base": "Unedited", "ft": "FT", "ft_l": "FT-L", "ft_v": "FT-V", "lora": "LoRA", "ike": "IKE", "mend": "MEND",
    "serac": "SERAC", "wise": "WISE", "grace": "GRACE", "grace_5": "GRACE, ε = 5", "grace_matched": "GRACE, matched ε",
    "grace_balanced": "GRACE, balanced ε", "balancedit_matched": "BalancEdit, constant ε",
    "balancedit_oracle": "BalancEdit, oracle", "balancedit": "BalancEdit", "two_keys": "Two keys (ours)",
}  # fmt: skip
PUBLISHED = "_published"  # the end of the name of a method at the values of its paper or official code
STANDS_TWICE = ("ft", "ft_l", "ft_v", "lora", "ike", "wise", "grace", "balancedit")  # tuned, and as published
METHODS = {
    end: label + said
    for name, label in METHODS.items()
    for end, said in ((name, ""), (f"{name}{PUBLISHED}", ", published"))[: 1 + (name in STANDS_TWICE)]
}
MAIN = {
    "reliability": "Rel.", "text_generality": "T-Gen", "image_generality": "I-Gen", "text_locality": "T-Loc",
    "image_locality": "I-Loc", "locality": "Loc", "hard_locality": "Hard Loc", "hm": "HM",
}  # fmt: skip
TRADE_OFF = {"text_generality": "T-Gen", "image_generality": "I-Gen", "locality": "Loc", "hm": "HM"}
REACHED = {
    "edit": "Edit", "text_generality": "Rephrased question", "image_generality": "Other picture",
    "joint_generality": "Both changed",
}  # fmt: skip
STRATA = {"relation": "Relation", "answer": "Type of answer"}
HOPS = {"hop1": "Hop 1", "hop2": "Hop 2"}
LOCALITY = {
    "near_image": "Near picture", "far_image": "Far picture", "other_question": "Other question",
    "unrelated": "Unrelated", "text_only": "Text only", "no_image": "No picture",
}  # fmt: skip
KINDS = REACHED | HOPS | LOCALITY | {"black_image": "Black picture"}
PROTOCOLS = {"strict": "strict", "teacher_forced": "teacher-forced"}
STRATEGIES = {"balanced": "balanced", "positive": "positive", "negative": "negative", "constant": "constant", "mean": "mean"}
NEGATIVES = {
    "black": "black", "white": "white", "noise": "noise", "random": "random picture",
    "nearest": "nearest picture", "other_question": "other question",
}  # fmt: skip
SAMPLE_COUNTS = {"1+1": "one each", "2+1": "2 positive", "3+1": "3 positive"} | {f"1+{n}": f"{n} negative" for n in range(2, 7)}
SPANS = {
    "prompt": "prompt", "question": "question", "image": "image", "last": "last token",
    "teacher_forced": "with the answer (leak)", "picture": "picture, at the connector", "picture_6": "picture, at layer 6",
}  # fmt: skip
ROUTERS = {
    "configured": "as configured", "balanced": "BalancEdit's key and radius", "matched": "BalancEdit's key, one radius as wide",
    "grace_matched": "GRACE's key, one radius as wide", "grace_1": "GRACE's key, ε = 1", "grace_5": "GRACE's key, ε = 5",
    "oracle": "exactly where it should", "always": "everywhere", "never": "nowhere",
}  # fmt: skip
SPLITS = {"train": "train", "dev": "dev", "test": "test"}
TASKS = {"naming": "Naming", "facts": "Facts", "text_only": "Open questions"}
VENDORS = {
    "Goog": "Google", "Twtr": "Twitter", "Appl": "Apple", "FB": "Facebook", "Sams": "Samsung",
    "Joy": "JoyPixels", "Wind": "Windows",
}  # fmt: skip
# The only artists whose drawings may be shown: their licences allow it.
SHOWN_VENDORS = ("Goog", "Twtr")
CREDIT = (
    "Pictures: Noto Emoji, © Google, Apache-2.0 / SIL OFL 1.1; Twemoji, © Twitter, Inc. and other "
    "contributors, CC-BY 4.0. "
    "Some are shown scaled, rotated and on another background. Pictures by other artists are used but not "
    "shown."
)


@dataclass(frozen=True)
class Report:
    """A notebook and the figures and tables that it saves under reports/."""

    title: str
    about: str
    figures: tuple[str, ...]
    tables: tuple[str, ...]


REPORTS = {
    "backbone": Report(
        "Backbones", "What the unedited models recognise and know, for each artist's drawings.",
        ("backbone_accuracy",), ("backbone_accuracy",),
    ),
    "okedit": Report(
        "OKEDIT", "The edits and their probes: how many of which kind, and examples.",
        ("okedit_relations",),
        ("okedit_relations", "okedit_probes", "okedit_phrasings", "okedit_rejected"),
    ),
    "samples": Report(
        "Samples", "The positive and negative samples that set each radius, and how far they lie from the key.",
        ("samples",), ("samples",),
    ),
    "edits": Report(
        "Edits", "Edits before and after: what the model answers to each kind of probe.",
        ("edit_example", "edits_outcomes"), ("edits_outcomes",),
    ),
    "metrics": Report(
        "Results",
        "The main tables in both protocols, the scores of every method, and distances against the radius.",
        ("frontier", "depths", "scores_strict", "scores_teacher_forced", "distances"),
        ("hm_strict", "main_strict", "areas", "artists", "tuning", "power", "hm_teacher_forced", "main_teacher_forced",
         "paired_strict", "paired_teacher_forced", "probes_strict", "probes_teacher_forced", "conditional", "strata", "radii",
         "settings"),
    ),
    "ablations": Report(
        "Ablations",
        "The radius: its weight α, strategies, samples and spans, how generality trades for locality, other routers and layers.",
        ("alpha", "strategies", "negative_samples", "sample_counts", "spans", "layers"),
        ("strategies", "negative_samples", "sample_counts", "spans", "auc", "routers", "layers"),
    ),
    "sequences": Report(
        "Sequences", "Many edits of one model, one after the other: what is left of each.",
        ("sequences_strict", "sequences_teacher_forced"), ("sequences_strict", "sequences_teacher_forced"),
    ),
    "cost": Report(
        "Costs", "Preparation, seconds and bytes an edit, and what a query pays for routing, on one machine.",
        (), ("cost", "routing", "throughput"),
    ),
    "claims": Report(
        "Claims", "What the paper claims, what was measured, and whether the claim holds here.", (), ("claims",),
    ),
}  # fmt: skip
HEADLINE_FIGURE = "frontier"


def ordered(names: Mapping[str, str], values: Iterable[str]) -> list[str]:
    """The distinct values: those with a name in the order of `names`, then the others sorted."""
    found = set(values)
    return [v for v in names if v in found] + sorted(found - set(names))


def select(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Rows with the wanted values; a column that the table does not have restricts nothing."""
    for column, value in wanted.items():
        if column in table.columns:
            table = table[table[column] == value]
    return table


def tuned(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of methods that were tuned, or had nothing to tune."""
    return table[~table["method"].str.endswith(PUBLISHED)]


def need(table: pd.DataFrame, *wanted: object) -> pd.DataFrame:
    """The table itself; UserError names what was wanted when it is empty, rather than an empty figure."""
    if table.empty:
        raise UserError(f"nothing to show for {', '.join(map(str, wanted))}: the results have no such rows")
    return table


def pairs(table: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """(dataset, backbone) and its rows, sorted."""
    return sorted(table.groupby(["dataset", "backbone"], sort=True), key=lambda group: group[0])


def count(values: Iterable[float]) -> str:
    """`n = 60`, or `n = 57–60` where counts differ."""
    found = sorted({int(v) for v in values if v == v})
    if not found:
        return "n = 0"
    return f"n = {found[0]}" if len(found) == 1 else f"n = {found[0]}–{found[-1]}"


def percent(level: float) -> str:
    """0.95 → `95 %`."""
    return f"{100 * level:g} %"


def where(table: pd.DataFrame) -> str:
    """Which dataset and backbone a table is about, for captions; several are listed."""
    datasets, backbones = (", ".join(sorted(set(table[c]))) for c in ("dataset", "backbone"))
    return f"{datasets} with {backbones}"
