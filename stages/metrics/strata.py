"""Scores by relation and by type of answer: what is easy and what is hard to edit."""

import pandas as pd

from stages.params import derive_seed
from stages.scoring import scores

SHOWN = ("reliability", *scores.HM_PARTS, "hm")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "hundred")


def groups(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Per edit_id its `relation` and the type of its target, `answer`."""
    edits = outcomes[outcomes["kind"] == "edit"].drop_duplicates("edit_id").set_index("edit_id")
    return pd.DataFrame({"relation": edits["relation"], "answer": edits["expected"].map(answer_type)})


def answer_type(answer: str) -> str:
    """`yes or no`, `number`, `one word` or `several words`."""
    words = answer.lower().split()
    if words in (["yes"], ["no"]):
        return "yes or no"
    if all(word.isdigit() or word in NUMBERS for word in words):
        return "number"
    return "one word" if len(words) == 1 else "several words"


def stratify(table: pd.DataFrame, by: pd.DataFrame, resamples: int, level: float, seed: int) -> pd.DataFrame:
    """group, stratum, metric, mean, low, high, n of each part of a `per_edit` table, with an interval over its edits."""
    found, table = [], table[[metric for metric in table if metric in SHOWN]]
    for group in by.columns:
        for stratum, members in table.groupby(by[group].reindex(table.index)):
            draws = scores.resample(len(members), resamples, derive_seed(seed, group, str(stratum)))
            summary = scores.summarise(members, draws, level)
            found.append(summary.assign(group=group, stratum=stratum))
    return pd.concat(found, ignore_index=True)[["group", "stratum", "metric", "mean", "low", "high", "n"]]
