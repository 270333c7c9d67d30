"""A method's cell of one dev edit on the tiny backbone."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from stages.backbone.vlm import Backbone
from stages.editing import cell
from stages.editing.cell import Cell
from stages.editing.editors import module_of
from stages.editing.plan import Plan
from stages.editing.probes import probes_of
from stages.editing.trunk_cache import TrunkCache
from stages.params import load
from stages.settings import Method, Place
from tests.rows import ROW, SAMPLES

PARAMS = replace(load(Path(__file__).parent.parent / "params.yaml"), keys={"deep": Place(0, "image")})
DEV = ROW | {"split": "dev", "rephrasings": [ROW["question"]]}  # the tiny model generalises to no other words


SOURCE = SimpleNamespace(params=PARAMS, pixels=lambda dataset, image_id: f"{dataset} {image_id}", encoder=lambda: "minilm")


def method(name: str, **hyper: object) -> Method:
    return replace(PARAMS.method(name), hyper=hyper)


def make(backbone: Backbone, chosen: Method) -> Cell:
    """A cell of one dev edit on the tiny backbone."""
    editor = module_of(chosen.editor)
    grid = [{k: v for k, v in vars(one).items() if k != "seed"} for one in chosen.grid(editor.Settings)]
    queries = {DEV["edit_id"]: probes_of(DEV, SAMPLES)}
    trunk = TrunkCache(backbone, {"red": "r", "noise": "n"}, cell.CACHE / "tiny", 0)  # the study's own cache is left alone
    samples = [sample | {"edit_id": DEV["edit_id"]} for sample in SAMPLES]
    plan = Plan("tiny_set", "tiny", backbone.fingerprint, chosen, editor, grid, [DEV], [], samples, [0], {}, {}, [])
    return Cell(**vars(plan), backbone=backbone, queries=queries, examples=[], trunk=trunk, batch=2)
