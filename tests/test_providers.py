"""Text providers against a loopback endpoint and a real small model, image providers against a tiny pipeline and a folder; the
cache; whether a picture shows what it should.
"""

import io
import json
import socket
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ASSETS, Endpoint, send
from PIL import Image

from stages.backbone.vlm import Query
from stages.okedit import agreement
from stages.okedit.providers import IMAGE, TEXT, diffusers_image, folder_image, openai_text, transformers_text
from stages.okedit.providers.base import CACHE, Cached, EndpointError, ProviderError
from stages.okedit.settings import variant
from stages.okedit.unedited import Unedited, unedited_answers
from stages.params import UserError
from stages.settings import STAGES

AT = "datasets.x.text"


def openai(endpoint: Endpoint, **changed: object) -> openai_text.OpenAI:
    settings = {"model": "m", "url": endpoint.url, "timeout": 5.0, "retries": 2, "wait": 0.01} | changed
    return openai_text.OpenAI(AT, openai_text.Settings(**settings))


def test_an_endpoint_gets_prompt_seed_and_key(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    monkeypatch.chdir(tmp_path)
    endpoint.says = lambda prompt: f"answer to {prompt}"
    settings = openai_text.Settings("m", endpoint.url, key_env="SOME_KEY", temperature=0.5, max_tokens=7)
    assert settings.open(AT).make("hé", 3, "1/rephrase") == "answer to hé".encode()
    assert endpoint.requests == [
        {
            "model": "m", "messages": [{"role": "user", "content": "hé"}], "seed": 3, "temperature": 0.5, "max_tokens": 7,
            "path": "/v1/chat/completions",
        }
    ]  # fmt: skip
    assert endpoint.keys == ["Bearer secret"]
    assert not any("secret" in path.read_text() for path in (tmp_path / CACHE).rglob("*") if path.is_file())


def test_a_key_that_is_not_in_the_environment_is_named(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(UserError, match=r"datasets\.x\.text\.key_env: 'SOME_KEY' is not set; allowed"):
        openai_text.Settings("m", endpoint.url, key_env="SOME_KEY").open(AT)
    assert endpoint.requests == []


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (partial(send, body="busy", status=503), "HTTP 503"),
        (partial(send, body="<html>not json"), "no chat completion"),
        (partial(send, body='{"choices": []}'), "no chat completion"),
        (partial(send, body='["choices"]'), "no chat completion"),
        (partial(send, body=json.dumps({"choices": [{"message": {"content": None}}]})), "an empty answer"),
        (lambda handler: handler.connection.shutdown(socket.SHUT_RDWR), "no connection"),
        (lambda handler: time.sleep(0.5), "timed out"),
    ],
)
def test_a_bad_answer_is_asked_for_again_and_named_when_it_lasts(endpoint: Endpoint, reply, reason: str) -> None:
    provider = openai(endpoint, timeout=0.2)
    endpoint.replies = [reply, reply]
    assert provider.make("q", 0, "") == b"yes"
    assert len(endpoint.requests) == 3
    endpoint.replies = [reply] * 3
    with pytest.raises(EndpointError, match=reason):
        provider.make("q", 0, "")
    assert len(endpoint.requests) == 6


@pytest.mark.parametrize(("status", "key"), [(401, "key_env"), (403, "key_env"), (404, "url")])
def test_what_no_retry_can_mend_stops_at_once(endpoint: Endpoint, status: int, key: str) -> None:
    endpoint.replies = [partial(send, body="no", status=status)]
    with pytest.raises(UserError, match=rf"datasets\.x\.text\.{key}: .* HTTP {status}; allowed"):
        openai(endpoint).make("q", 0, "")
    assert len(endpoint.requests) == 1


def test_nobody_listening_is_an_endpoint_error() -> None:
    settings = openai_text.Settings("m", "http://127.0.0.1:9/v1", retries=1, wait=0.0)
    with pytest.raises(EndpointError, match="no connection"):
        openai_text.OpenAI(AT, settings).make("q", 0, "")


class Counting:
    """A provider that counts, and fails when told to."""

    def __init__(self, identity: str = "one"):
        self.identity, self.asked, self.failing = identity, 0, False

    def make(self, prompt: str, seed: int, name: str) -> bytes:
        if self.failing:
            raise ProviderError("failed")
        self.asked += 1
        return f"{self.identity} {prompt} {seed}".encode()


def test_the_cache_is_by_provider_prompt_and_seed(tmp_path: Path) -> None:
    provider = Counting()
    for _ in range(2):
        cached = Cached(provider, tmp_path)  # a second run
        assert cached.make("a", 0, "x") == cached.make("a", 0, "y") == b"one a 0"
        assert (cached.make("b", 0, "x"), cached.make("a", 1, "x")) == (b"one b 0", b"one a 1")
    assert provider.asked == 3
    other = Counting("two")
    assert Cached(other, tmp_path).make("a", 0, "x") == b"two a 0" and other.asked == 1


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    provider = Counting()
    provider.failing = True
    with pytest.raises(ProviderError):
        Cached(provider, tmp_path).make("a", 0, "x")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    provider.failing = False
    assert Cached(provider, tmp_path).make("a", 0, "x") == b"one a 0"


def test_a_real_language_model_writes_the_same_for_the_same_seed() -> None:
    gguf = next((ASSETS / "smollm2").glob("*.gguf"), None)
    if gguf is None:
        pytest.skip("data/assets holds no SmolLM2: the stage assets has not run")
    settings = transformers_text.Settings(str(gguf.parent), gguf.name, temperature=0.8, max_tokens=12)
    provider = transformers_text.Transformers(AT, settings)
    before = torch.random.get_rng_state()
    one, same, other = (provider.make("What is the capital of France?", seed, "").decode() for seed in (1, 1, 2))
    assert one == same != other
    assert torch.equal(before, torch.random.get_rng_state())
    provider.settings = transformers_text.Settings(str(gguf.parent), gguf.name, temperature=0.0, max_tokens=12)
    assert "Paris" in provider.make("What is the capital of France?", 1, "").decode()


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    text = transformers_text.Transformers(AT, transformers_text.Settings(str(tmp_path / "none")))
    with pytest.raises(UserError, match=r"datasets\.x\.text\.model: .*none' cannot be loaded"):
        text.make("q", 0, "")
    pytest.importorskip("diffusers", reason="the optional package diffusers is not installed")
    image = diffusers_image.Diffusers("datasets.x.image", diffusers_image.Settings(str(tmp_path / "none")))
    with pytest.raises(UserError, match=r"datasets\.x\.image\.model: .*none' cannot be loaded"):
        image.make("q", 0, "")


def words(folder: Path):
    """A CLIP tokenizer of the letters."""
    from transformers import CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz.?"]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16), len(vocabulary)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion pipeline of some ten thousand random weights, saved as a folder."""
    diffusers = pytest.importorskip("diffusers", reason="the optional package diffusers is not installed")
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("pipeline")
    tokenizer, size = words(folder)
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=size, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(4, 8), layers_per_block=1, sample_size=16, in_channels=4, out_channels=4, norm_num_groups=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=2,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 8), in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    made = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    made.save_pretrained(folder / "saved")
    return folder / "saved"


def test_a_diffusion_pipeline_draws_by_prompt_and_seed(pipeline: Path) -> None:
    provider = diffusers_image.Diffusers("", diffusers_image.Settings(str(pipeline), steps=2, guidance=2.0, size=32))
    one, same, other = (provider.make("a cat", seed, "") for seed in (1, 1, 2))
    assert one == same != other != provider.make("a dog", 2, "")
    assert Image.open(io.BytesIO(one)).size == (32, 32)


def test_a_folder_gives_the_file_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "generality-0.jpg").write_bytes(b"bytes")
    provider = folder_image.Settings(tmp_path).open("datasets.x.image")
    assert provider.make("", 0, "7/generality-0") == b"bytes"
    with pytest.raises(ProviderError, match="no file"):
        provider.make("", 0, "7/generality-1")
    with pytest.raises(UserError, match=r"datasets\.x\.image\.folder: .* does not exist"):
        folder_image.Settings(tmp_path / "none").open("datasets.x.image")


def test_the_provider_decides_which_entries_there_are() -> None:
    check = variant("provider", TEXT)
    made = check(AT, {"provider": "openai", "model": "m", "url": "http://localhost/v1"}, STAGES)
    assert isinstance(made, openai_text.Settings) and made.timeout == 60
    for section, message in (
        ({"provider": "gemini"}, r"text\.provider: 'gemini' is not allowed; allowed: transformers, openai"),
        ("openai", r"text\.provider: None is not allowed"),
        ({"provider": "openai", "model": "m"}, r"text\.url: missing"),
        ({"provider": "openai", "model": "m", "url": "file:///etc/passwd"}, r"text\.url: 'file:.* starts with http"),
        (
            {"provider": "transformers", "model": "m", "url": "http://x"},
            r"text\.url: 'http://x': unknown key; allowed: model, gguf",
        ),
    ):
        with pytest.raises(UserError, match=message):
            check(AT, section, STAGES)
    assert variant("provider", IMAGE)("i", {"provider": "folder", "folder": "x"}, STAGES) == folder_image.Settings(Path("x"))


def test_clip_agrees_above_its_threshold(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    tokenizer, size = words(tmp_path)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=size, max_position_embeddings=16, bos_token_id=size - 2, eos_token_id=size - 1, **shape)
    vision = CLIPVisionConfig(image_size=32, patch_size=16, **shape)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)).eval()
    model.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path / "clip")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8))
    with torch.no_grad():
        one = model.get_text_features(**tokenizer("what? cat", return_tensors="pt")).pooler_output
        two = model.get_image_features(**processor(image, return_tensors="pt")).pooler_output
    cosine = float(torch.nn.functional.cosine_similarity(one, two))
    for threshold, agrees in ((cosine - 0.01, True), (cosine + 0.01, False)):
        assert agreement.Clip(str(tmp_path / "clip"), threshold).open("", [])(image, "what?", "cat") is agrees
    with pytest.raises(UserError, match=r"agreement\.model: .*none' cannot be loaded"):
        agreement.Clip(str(tmp_path / "none")).open("datasets.x.agreement", [])


def test_a_backbones_own_answer_agrees_when_it_is_the_answer(backbone) -> None:
    image, asked = Image.new("RGB", (64, 64), (200, 30, 30)), Unedited("tiny", lambda: backbone)
    (own,) = unedited_answers(backbone, [Query("what?", "red")])
    agrees = agreement.OwnAnswer().open("", [asked])
    assert agrees(image, "what?", own) and not agrees(image, "what?", f"{own} not this")
