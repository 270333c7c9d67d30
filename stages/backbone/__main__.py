"""Train an embedded backbone once, assemble it from the parts that came with pip and the trained weights in Git, or point to a
real checkpoint.

python -m stages.backbone tower                     # stages/backbone/weights/tower.safetensors (half an hour on two cores)
python -m stages.backbone train llava-smollm2       # stages/backbone/weights/<training>.safetensors (an hour each)
python -m stages.backbone assemble llava-smollm2    # data/backbones/<name>/
python -m stages.backbone measure llava-smollm2     # reports/backbones/<name>.csv and .md: what it sees and knows

What stands in reports/backbones is not measured again where it was measured of the same by the same code.
"""

import hashlib
import importlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType

import pandas as pd
import torch

from stages import code
from stages.assets import knowledge
from stages.backbone import corpus, start, train, views, vision_tower
from stages.backbone import pointer as pointers
from stages.backbone.adapters import adapt
from stages.backbone.card import card, checkpoint_card
from stages.backbone.checkpoints import PROMPT as PROMPT_FILE
from stages.backbone.checkpoints import point
from stages.backbone.evaluate import accuracy_table, text_row
from stages.backbone.parts import PROMPT, fill_tower, language_model
from stages.backbone.tower import EfficientNetLiteConfig, EfficientNetLiteTower
from stages.backbone.vlm import Backbone
from stages.params import Params, UserError, derive_seed, load, run, write_atomically
from stages.settings import TOWER, Checkpoint, Embedded, Train

ASSETS = Path("data/assets")
WEIGHTS = Path("stages/backbone/weights")
TOWER_WEIGHTS = WEIGHTS / "tower.safetensors"
TOWER_SEED = "sight"  # the name that the seed comes from: the weights in Git were made under it
CACHE = Path("data/.cache/training")
VENDORS = (*views.SEEN_VENDORS, *views.HELD_OUT_VENDORS)
CHECKED = VENDORS[-1:]  # whose pictures tell whether changed code measures the same


def family(params: Params, training: str) -> ModuleType:
    """The module that builds the untrained model of a training."""
    module = params.trained(training).family.replace("-", "_")
    return importlib.import_module(f"stages.backbone.families.{module}")


def train_tower(params: Params) -> None:
    """Tune the late blocks of the vision tower that the embedded backbones share; the weights go to Git."""
    settings, facts = params.vision_tower, knowledge.load()
    seed = derive_seed(params.seed, TOWER_SEED)
    tower = fill_tower(EfficientNetLiteTower(EfficientNetLiteConfig()), ASSETS)
    codes = [c.code_point for c in facts.concepts]
    early = views.early_bank(tower, ASSETS / "emoji", codes, settings.views, seed, CACHE)
    vision_tower.tune(tower, early, [c.name for c in facts.concepts], settings, seed)
    vision_tower.save(TOWER_WEIGHTS, tower)
    print(f"[backbone] tuned the tower for {settings.steps} steps on {early.shape[:3].numel():,} views -> {TOWER_WEIGHTS}")


def train_backbone(params: Params, name: str) -> None:
    """Train the connector and adapter of an entry of `training`; the weights go to Git."""
    settings, parts = params.trained(name), family(params, name)
    facts = knowledge.load()
    checkpoint = checkpoint_path(params, name)
    seed = derive_seed(params.seed, "backbone", name)
    names, codes = ([getattr(c, part) for c in facts.concepts] for part in ("name", "code_point"))
    language, _, tokenizer = language_model(ASSETS)
    texts = train.own_answers(language, tokenizer, corpus.text_questions(ASSETS)[0])
    model, _ = parts.build(ASSETS)
    vision_tower.apply(parts.tower(model), TOWER_WEIGHTS)
    early = views.early_bank(
        parts.tower(model), ASSETS / "emoji", codes, params.vision_tower.views, derive_seed(params.seed, TOWER_SEED), CACHE
    )
    bank = views.feature_bank(parts.tower(model), early)
    before = None if settings.init_from == TOWER else weights(settings.init_from)
    if before is None:
        parts.start(model, start.name_tokens(model, tokenizer, names), bank, seed)
    elif (teacher := family(params, settings.init_from)) is parts:
        model.load_state_dict(start.tensors_of(before, "connector."), strict=False)
    else:
        parts.start(model, start.picture_tokens(teacher, teacher.build(ASSETS)[0], before, bank), bank, seed)
    draw = train.batches(
        corpus.training_questions(facts),
        bank,
        texts,
        images=settings.batch,
        sampling=settings.sampling,
        texts=settings.texts,
        noise=settings.feature_noise,
        packer=partial(train.pack, tokenizer=tokenizer, shown=parts.connect(model, bank[0, 0, :1].float()).shape[1]),
    )
    tensors = train.train(
        adapt(model, tokenizer, prompt=PROMPT),
        parts,
        draw,
        steps=settings.steps,
        lr=settings.lr,
        rank=settings.lora_rank,
        warmup=settings.warmup,
        seed=seed,
        checkpoint=checkpoint,
        adapter_from=before and start.tensors_of(before, "adapter."),
    )
    path = WEIGHTS / f"{name}.safetensors"
    train.save_weights(path, tensors)
    checkpoint.unlink(missing_ok=True)
    print(f"[backbone] trained {name} for {settings.steps} steps on {len(codes)} concepts -> {path}")


def trainings(params: Params, last: str) -> dict[str, Train]:
    """All trainings that lead to `last`, by name, in their order."""
    chain = {last: params.trained(last)}
    while (before := next(reversed(chain.values())).init_from) != TOWER:
        chain[before] = params.trained(before)
    return dict(reversed(chain.items()))


def weights(name: str) -> Path:
    """The weights of a training, which are there."""
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists():
        raise UserError(f"backbone: {path} is missing; run `python -m stages.backbone train {name}`")
    return path


def checkpoint_path(params: Params, name: str) -> Path:
    """Where an interrupted training of these settings, data and code is taken up again."""
    digest = hashlib.sha256(f"{params.seed} {params.trained(name)}".encode())
    sources = [*sorted(Path(__file__).parent.rglob("*.py")), *sorted(Path(knowledge.__file__).parent.rglob("*.*"))]
    for path in sources:
        if "__pycache__" not in path.parts:
            digest.update(path.read_bytes())
    return CACHE / f"{name}-{digest.hexdigest()[:16]}.pt"


def assemble(params: Params, name: str) -> None:
    """Leave in data/backbones/<name> what `Backbone.open` opens: trained weights put into the parts, saved as Hugging Face reads
    them, or the pointer to a real checkpoint.
    """
    settings, folder = params.backbone(name), Path("data/backbones") / name
    if isinstance(settings, Checkpoint):
        shutil.rmtree(folder, ignore_errors=True)
        point(settings, folder)
    else:
        trained, parts = weights(settings.training), family(params, settings.training)
        model, tokenizer = parts.build(ASSETS)
        vision_tower.apply(parts.tower(model), TOWER_WEIGHTS)
        model = train.apply_weights(model, trained)
        unfinished = folder.with_name(f"{name}.partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        model.to(torch.bfloat16).save_pretrained(unfinished)
        tokenizer.init_kwargs.pop("local_files_only", None)  # whether the hub was asked is no part of a tokenizer
        tokenizer.save_pretrained(unfinished)
        (unfinished / PROMPT_FILE).write_text(json.dumps(PROMPT, indent=2))
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    made_from = settings.checkpoint if isinstance(settings, Checkpoint) else weights(settings.training)
    print(f"[backbone] {made_from} -> {folder}")


def measure(params: Params, name: str) -> None:
    """Measure what an assembled backbone sees and knows, where Git does not have it, and write its card. What other code measured
    of the same stays if it measures the same on one artist's pictures.
    """
    settings, folder, report = params.backbone(name), Path("data/backbones") / name, Path("reports/backbones") / f"{name}.csv"
    facts, stamp, beside = knowledge.load(), stamp_of(params, name, folder), report.with_suffix(".json")
    there = json.loads(beside.read_text()) if report.exists() and beside.exists() else {}
    stands, backbone = there == stamp, None
    if not stands:
        backbone = Backbone.open(folder, settings.layer)
        if there.get("made_from") == stamp["made_from"]:
            again = pictured(params, name, backbone, facts, CHECKED)
            stands = again.merge(pd.read_csv(report)).shape == again.shape
        if not stands:
            with write_atomically(report) as temporary:
                accuracies(params, name, backbone, facts).to_csv(temporary, index=False, lineterminator="\n")
        with write_atomically(beside) as temporary:
            temporary.write_text(json.dumps(stamp, indent=2) + "\n")
    table, text = pd.read_csv(report), None
    if isinstance(settings, Embedded):
        known = sum(len(relation.facts) for relation in facts.relations.values() if relation.relation != "name")
        what = (family(params, settings.training).__doc__ or "").split("\n")[0]
        text = card(name, what, params.vision_tower, trainings(params, settings.training), len(facts.concepts), known, table)
    elif not stands:
        text = checkpoint_card(name, pointers.read(folder), backbone.layer, backbone.adapter.template, table)
    if text is not None:
        with write_atomically(report.with_suffix(".md")) as temporary:
            temporary.write_text(text)
    checked = ", checked on one artist's pictures by the code of now" if stands and backbone else ""
    print(f"[backbone] {name}: {len(table)} accuracies {'as Git has them in' if stands else '->'} {report}{checked}")


def stamp_of(params: Params, name: str, folder: Path) -> dict[str, str]:
    """What the accuracies of a backbone are measured of, and by which code."""
    settings, facts = params.backbone(name), Path(knowledge.__file__).parent / "knowledge"
    asked = [pointers.fingerprint(folder, settings.layer), asdict(params.accuracy), derive_seed(params.seed, "evaluate", name)]
    asked += [ASSETS.with_suffix(".json").read_text(), *(path.read_text() for path in sorted(facts.iterdir()))]
    modules = ["stages.backbone.corpus", "stages.backbone.evaluate"]
    modules += [family(params, settings.training).__name__] if isinstance(settings, Embedded) else []
    modules += pointers.adapters(folder)
    return {"made_from": hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16], "code": code.digest(*modules)}


def accuracies(params: Params, name: str, backbone: Backbone, facts: knowledge.Knowledge) -> pd.DataFrame:
    """What a backbone sees and knows; of an embedded one, first what the untrained model knows."""
    settings, seed = params.backbone(name), derive_seed(params.seed, "evaluate", name)
    asked, rows = corpus.text_sample(ASSETS, params.accuracy.texts_evaluated, seed), []
    if isinstance(settings, Embedded):
        model, tokenizer = family(params, settings.training).build(ASSETS)
        untrained = Backbone(model, tokenizer, settings.layer, "untrained", adapt(model, tokenizer, prompt=PROMPT))
        rows.append(text_row(untrained, f"{name}, untrained", *asked))
    return pd.concat([*rows, pictured(params, name, backbone, facts), text_row(backbone, name, *asked)])


def pictured(
    params: Params, name: str, backbone: Backbone, facts: knowledge.Knowledge, vendors: Sequence[str] = VENDORS
) -> pd.DataFrame:
    """What a backbone sees and knows of some artists' pictures."""
    seed = derive_seed(params.seed, "evaluate", name)
    return accuracy_table(backbone, name, facts, ASSETS / "emoji", params.accuracy.evaluated, seed, vendors)


def main() -> None:
    actions = {"train": train_backbone, "assemble": assemble, "measure": measure}
    if sys.argv[1:] != ["tower"] and (len(sys.argv) != 3 or sys.argv[1] not in actions):
        allowed = "tower | train, then a training's name | assemble or measure, then a backbone's"
        raise UserError(f"arguments: {' '.join(sys.argv[1:])!r}; allowed: {allowed}")
    params = load()
    torch.set_num_threads(params.threads)
    if sys.argv[1] == "tower":
        train_tower(params)
    else:
        actions[sys.argv[1]](params, sys.argv[2])


if __name__ == "__main__":
    run(main)
