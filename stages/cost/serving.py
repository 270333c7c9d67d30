"""What a query pays when the model it asks is routed through a codebook, against the unedited model, in one pass."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from stages.backbone.vlm import Backbone, Query, mean_over
from stages.cost.clock import measure
from stages.editing.codebook import Codebook, Entry
from stages.editing.edits import Edit


def served(
    backbone: Backbone, queries: Sequence[Query], edits: Sequence[Edit], span: str, sizes: Sequence[int], rounds: int
) -> Mapping[tuple[int, str] | str, np.ndarray]:
    """(entries, "miss" or "hit") → [rounds] seconds a query of a routed forward over all of them, and so of the "unedited" one.

    On a hit, every query of the batch goes to an entry of its own, as far as there are entries: `edits`, one a query. The other
    entries have random keys, as far from the queries as these are from each other, and share these edits' transformations.
    """
    prompts = backbone.prompts(queries)
    phi = mean_over(backbone.prefill(prompts).inputs, prompts.spans[span])
    books = {}
    for size in sizes:
        met = [Entry(key, 1e-3, str(i), edit) for i, (key, edit) in enumerate(zip(phi, edits, strict=True))][:size]
        others = others_than(phi, edits, size - len(met))
        books[size, "hit"] = Codebook(entries=met + others)
        books[size, "miss"] = Codebook(entries=[replace(entry, key=entry.key + 1) for entry in met] + others)

    def ask(book: Codebook | None) -> None:
        if book is None:
            backbone.prefill(prompts)
            return
        with book.answering(backbone, prompts, span):
            backbone.prefill(prompts)

    taken = measure({"unedited": partial(ask, None), **{name: partial(ask, book) for name, book in books.items()}}, rounds)
    return {name: seconds / len(queries) for name, seconds in taken.items()}


def others_than(phi: torch.Tensor, edits: Sequence[Edit], count: int) -> list[Entry]:
    """`count` entries whose keys are normal around the mean of `phi` [B, D] with its deviation, too narrow to be met."""
    generator = torch.Generator().manual_seed(0)
    keys = phi.mean(0) + torch.randn(count, phi.shape[1], generator=generator) * phi.std()
    return [Entry(key, 0.0, "", edits[i % len(edits)]) for i, key in enumerate(keys)]
