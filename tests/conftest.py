"""Small real parts that the tests share: a LLaVA of a few thousand random weights with a word tokenizer, and pictures."""

import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from stages.backbone.adapters import adapt
from stages.backbone.parts import END, IMAGE_TOKEN, PROMPT
from stages.backbone.tower import EfficientNetLiteConfig
from stages.backbone.vlm import Backbone
from stages.editing import cell, sentences
from stages.editing.fitting import Example, training_probes
from stages.editing.probes import Probe, probes_of
from stages.editing.resume import Records
from stages.editing.trunk import States, run_trunk
from tests import editors
from tests.architectures import MARKS, save_checkpoint
from tests.rows import ROW, SAMPLES

pytest_plugins = ["tests.worlds"]
LAYER = 2
ROOT = Path(__file__).parent.parent
ASSETS = ROOT / "data/assets"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The whole chain takes longest: it begins first, beside the other files."""
    items.sort(key=lambda item: item.path.name != "test_end_to_end.py")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two files are tested at a time: two threads each would wait for one another on two cores."""
    torch.set_num_threads(1)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, and the special tokens of the chat template."""
    characters = [chr(c) for c in range(32, 127)] + ["\n"]
    vocabulary = {token: i for i, token in enumerate([END, "<|im_start|>", IMAGE_TOKEN, *characters])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=END))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=END, pad_token=END, additional_special_tokens=["<|im_start|>", IMAGE_TOKEN]
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tests' tokenizer."""
    return make_tokenizer()


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlavaForConditionalGeneration:
    """A LLaVA with 5 decoder layers of width 32 and random weights."""
    torch.manual_seed(seed)
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=EfficientNetLiteConfig(image_size=64, grid=2), text_config=text, image_seq_length=4,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN), vision_feature_layer=-1,
        vision_feature_select_strategy="full", tie_word_embeddings=True,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
    return model


def make_backbone(tokenizer: PreTrainedTokenizerFast) -> Backbone:
    """A tiny backbone that has seen the pictures "red" and "noise"."""
    model = make_model(tokenizer)
    made = Backbone(model, tokenizer, LAYER, "tiny", adapt(model, tokenizer, prompt=PROMPT))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    made.add_pictures({"red": Image.new("RGB", (64, 64), (200, 30, 30)), "noise": Image.fromarray(noise)})
    return made


@pytest.fixture()
def backbone(tokenizer: PreTrainedTokenizerFast) -> Backbone:
    """The tiny backbone, opened anew."""
    return make_backbone(tokenizer)


@pytest.fixture()
def probes() -> list[Probe]:
    """The queries of one edit."""
    return probes_of(ROW, SAMPLES)


@pytest.fixture()
def states(backbone: Backbone, probes: list[Probe]) -> States:
    """What the tiny backbone's trunk says of them."""
    return run_trunk(backbone, ROW, probes)


@pytest.fixture(scope="session")
def words(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tests' character tokenizer with every architecture's special tokens."""
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token=tokenizer.eos_token, pad_token="<eos>")
    made.add_special_tokens({"additional_special_tokens": list(MARKS)})
    return made


@pytest.fixture()
def examples(backbone: Backbone) -> list[Example]:
    """Two train edits, to learn from."""
    more = [{"kind": "text_only", "image_id": None, "question": "Who sang?", "answer": "he"}]
    rows = [row | {"locality": ROW["locality"] + more} for row in editors.TRAIN]
    return [Example(row, training_probes(row), partial(run_trunk, backbone, row)) for row in rows]


@pytest.fixture()
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentences are embedded by their letters, to be checked by hand."""
    monkeypatch.setattr(sentences, "embed", editors.letters)


@pytest.fixture()
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Records:
    """Where a test's edits are kept, apart from the study's caches."""
    monkeypatch.setattr(cell, "CACHE", tmp_path / "trunk")
    with Records(tmp_path / "partial", "inputs") as opened:
        yield opened


@pytest.fixture(scope="session")
def real() -> Path:
    """Real rows and photos of OK-VQA, MMEdit and COCO, which stand beside the checkout."""
    for folder in (ROOT / "../shared/real", ROOT / "../../shared/real"):
        if folder.is_dir():
            return folder.resolve()
    pytest.skip("no folder shared/real with real rows and photos beside the checkout")


class Endpoint:
    """A loopback server that speaks OpenAI's chat completions: `says` turns a prompt into an answer; what it gets is kept."""

    def __init__(self) -> None:
        self.says: Callable[[str], str] = lambda prompt: "yes"
        self.replies: list[Callable[[http.server.BaseHTTPRequestHandler], None]] = []  # replace the next answers
        self.requests: list[dict] = []
        self.keys: list[str | None] = []
        endpoint = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append(body | {"path": self.path})
                endpoint.keys.append(self.headers["Authorization"])
                if endpoint.replies:
                    endpoint.replies.pop(0)(self)
                else:
                    answer = endpoint.says(body["messages"][0]["content"])
                    send(self, json.dumps({"choices": [{"message": {"role": "assistant", "content": answer}}]}))

            def log_message(self, *_: object) -> None:
                """Tests print nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


def send(handler: http.server.BaseHTTPRequestHandler, body: str, status: int = 200) -> None:
    """Answer one request."""
    handler.send_response(status)
    handler.end_headers()
    handler.wfile.write(body.encode())


@pytest.fixture()
def endpoint() -> Iterator[Endpoint]:
    """A running endpoint."""
    made = Endpoint()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def saved(words: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA checkpoint's folder, which a file's tests leave as it is."""
    return save_checkpoint("llava", words, tmp_path_factory.mktemp("saved"))


@pytest.fixture()
def copied(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))
