"""Train an embedded backbone once, or assemble it from the parts that came with pip and the trained weights in Git.

python -m stages.backbone assemble llava-smollm2    # data/backbones/<name>/ and reports/backbones/<name>.csv
python -m stages.backbone train llava-smollm2       # stages/backbone/weights/<name>.safetensors (about an hour on two cores)
"""

import hashlib
import importlib
import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch

from stages.assets import knowledge
from stages.backbone import corpus, train
from stages.backbone.evaluate import accuracy_table
from stages.backbone.vlm import PROMPT, Backbone
from stages.params import Params, UserError, derive_seed, load, run

ASSETS = Path("data/assets")
WEIGHTS = Path("stages/backbone/weights")


def family(params: Params, name: str):
    """The module that builds a backbone's untrained model."""
    module = params.backbone(name).family.replace("-", "_")
    return importlib.import_module(f"stages.backbone.families.{module}")


def train_backbone(params: Params, name: str) -> None:
    """Train projector and adapter from the parts; the weights go to Git."""
    settings, parts = params.backbone(name).train, family(params, name)
    facts = knowledge.load()
    checkpoint = checkpoint_path(params, name)
    model, tokenizer = parts.build(ASSETS)
    seed = derive_seed(params.seed, "backbone", name)
    codes = [c.code_point for c in facts.concepts]
    bank = corpus.feature_bank(model.model.vision_tower, ASSETS / "emoji", codes, settings.views, seed)
    names = train.name_embeddings(model, tokenizer, [c.name for c in facts.concepts])
    pooled = bank.float().mean(3).flatten(0, 2)
    train.ridge_init(model.model.multi_modal_projector, pooled, names.repeat(len(pooled) // len(names), 1))
    questions = [row["question"] for row in pq.read_table(ASSETS / "nq_open.parquet").to_pylist()[: corpus.TRAINING_TEXTS]]
    texts = train.own_answers(model, tokenizer, [corpus.as_sentence(q) for q in questions], parts.TEMPLATE)
    draw = train.batches(
        corpus.training_questions(facts),
        bank,
        texts,
        images=settings.batch,
        texts=settings.texts,
        noise=settings.feature_noise,
        packer=lambda rows: train.pack(rows, tokenizer, parts.TEMPLATE, parts.IMAGE_TOKEN, parts.END),
    )
    tensors = train.train(
        model,
        draw,
        steps=settings.steps,
        lr=settings.lr,
        rank=settings.lora_rank,
        warmup=settings.warmup,
        seed=seed,
        checkpoint=checkpoint,
    )
    path = WEIGHTS / f"{name}.safetensors"
    train.save_weights(path, tensors)
    checkpoint.unlink(missing_ok=True)
    print(f"[backbone] trained {name} for {settings.steps} steps on {len(codes)} concepts -> {path}")


def checkpoint_path(params: Params, name: str) -> Path:
    """Where an interrupted training of these settings, data and code is taken up again."""
    digest = hashlib.sha256(f"{params.seed} {params.backbone(name)}".encode())
    sources = [*sorted(Path(__file__).parent.rglob("*.py")), *sorted(Path(knowledge.__file__).parent.rglob("*.*"))]
    for path in sources:
        if "__pycache__" not in path.parts:
            digest.update(path.read_bytes())
    return Path("data/.cache/training") / f"{name}-{digest.hexdigest()[:16]}.pt"


def assemble(params: Params, name: str) -> None:
    """Put the trained weights into the parts, save a checkpoint folder as Hugging Face reads it, and measure what it sees."""
    weights = WEIGHTS / f"{name}.safetensors"
    if not weights.exists():
        raise UserError(f"backbone: {weights} is missing; run `python -m stages.backbone train {name}`")
    model, tokenizer = family(params, name).build(ASSETS)
    model = train.apply_weights(model, weights)
    folder, partial = Path("data/backbones") / name, Path("data/backbones") / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / PROMPT).write_text(json.dumps(family(params, name).PROMPT, indent=2))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    backbone = Backbone.open(folder, params.backbone(name).layer)
    seed = derive_seed(params.seed, "evaluate", name)
    table = accuracy_table(backbone, name, knowledge.load(), ASSETS / "emoji", params.backbone(name).evaluated, seed)
    report = Path("reports/backbones") / f"{name}.csv"
    report.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(report, index=False, lineterminator="\n")
    print(f"[backbone] {weights} -> {folder}; {len(table)} accuracies -> {report}")


def main() -> None:
    actions = {"train": train_backbone, "assemble": assemble}
    if len(sys.argv) != 3 or sys.argv[1] not in actions:
        raise UserError(f"arguments: {' '.join(sys.argv[1:])!r}; allowed: {' | '.join(actions)}, then a backbone's name")
    params = load()
    torch.set_num_threads(params.threads)
    actions[sys.argv[1]](params, sys.argv[2])


if __name__ == "__main__":
    run(main)
