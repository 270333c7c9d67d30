"""Training: the tower's halves and its tuning, views, where connectors start, weights that go to Git and come back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import Blip2QFormerConfig, LlamaConfig

from stages.backbone import start, train, views, vision_tower
from stages.backbone.__main__ import trainings
from stages.backbone.adapters import adapt
from stages.backbone.blip2_lite import Blip2LiteConfig, Blip2LiteForConditionalGeneration
from stages.backbone.card import card
from stages.backbone.corpus import Question
from stages.backbone.families import blip2_smollm2, llava_smollm2
from stages.backbone.parts import IMAGE_TOKEN, PROMPT
from stages.backbone.tower import EfficientNetLiteConfig, EfficientNetLiteTower
from stages.params import UserError, load
from stages.settings import Train, VisionTower
from tests.conftest import make_model


@pytest.fixture()
def tower() -> EfficientNetLiteTower:
    torch.manual_seed(0)
    made = EfficientNetLiteTower(EfficientNetLiteConfig(image_size=64, grid=2)).eval().requires_grad_(False)
    for parameter in made.parameters():
        if parameter.ndim == 4:  # the default start lets activations vanish in so deep a network without batch statistics
            torch.nn.init.kaiming_normal_(parameter)
    return made


@pytest.fixture()
def early(tower: EfficientNetLiteTower) -> torch.Tensor:
    """Two artists, two views, three concepts that differ in colour."""
    colours = torch.eye(3)[None, None, :, :, None, None].expand(2, 2, 3, 3, 64, 64) * 2 - 1
    noise = 0.1 * torch.randn(2, 2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return tower.early((colours + noise).flatten(0, 2)).unflatten(0, (2, 2, 3)).half()


def test_the_halves_are_the_whole_network(tower: EfficientNetLiteTower) -> None:
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    whole = F.adaptive_avg_pool2d(tower.net.extract_features(pixels), 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tower(pixels).last_hidden_state, whole, atol=1e-6, rtol=1e-6)


def test_tuning_tells_concepts_apart_and_leaves_the_early_blocks(tower, early, tmp_path: Path) -> None:
    before = {name: p.clone() for name, p in tower.named_parameters()}
    vision_tower.tune(tower, early, ["red", "green", "blue"], VisionTower(views=1, steps=30, batch=8, lr=1e-3), seed=0)
    changed = {name for name, p in tower.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(vision_tower.late_state(tower))
    pooled = views.feature_bank(tower, early).float().mean(3).flatten(0, 1)  # [artist and view, concept, D]
    features = F.normalize(pooled - pooled.mean((0, 1)), dim=-1)
    same = (features[:1] * features[1:]).sum(-1).mean()
    other = (features[:1] * features[1:].roll(1, 1)).sum(-1).mean()
    assert same > other + 0.05
    vision_tower.save(tmp_path / "tower.safetensors", tower)
    fresh = EfficientNetLiteTower(tower.config)
    fresh.load_state_dict(tower.state_dict() | before)
    vision_tower.apply(fresh, tmp_path / "tower.safetensors")
    for name, p in fresh.named_parameters():
        expected = tower.get_parameter(name)
        torch.testing.assert_close(p, expected.bfloat16().float() if name in changed else expected, atol=0, rtol=0)


def test_mixing_exchanges_statistics_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the whole share given to the other picture, each takes that one's channel means and deviations."""

    class Given:
        def random(self) -> float:
            return 0.0

        def permutation(self, n: int) -> np.ndarray:
            return np.arange(n)[::-1].copy()

        def beta(self, a: float, b: float, n: int) -> np.ndarray:
            return np.zeros(n)

    states = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 3.0])[:, None, None, None]
    mixed = vision_tower.mixed(states, Given())
    torch.testing.assert_close(mixed.mean((2, 3)), states.flip(0).mean((2, 3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed.std((2, 3)), states.flip(0).std((2, 3)), atol=1e-4, rtol=1e-4)
    shape = (states - states.mean((2, 3), keepdim=True)) / states.std((2, 3), keepdim=True)
    found = (mixed - mixed.mean((2, 3), keepdim=True)) / mixed.std((2, 3), keepdim=True)
    torch.testing.assert_close(found, shape, atol=1e-4, rtol=1e-4)


def test_views_follow_from_their_seed() -> None:
    drawn = Image.new("RGBA", (72, 72), (0, 0, 0, 0))
    drawn.paste((200, 30, 30, 255), (20, 20, 52, 52))
    one, again, other = (np.array(views.augment(drawn, np.random.default_rng(seed))) for seed in (3, 3, 4))
    assert one.shape == (views.SIDE, views.SIDE, 3)
    assert (one == again).all() and (one != other).any()


def test_an_outline_surrounds_what_is_drawn() -> None:
    drawn = Image.new("RGBA", (21, 21), (0, 0, 0, 0))
    drawn.paste((200, 30, 30, 255), (8, 8, 13, 13))
    outlined = np.array(views.outlined(drawn, 5, 10))
    assert outlined[10, 10].tolist() == [200, 30, 30, 255]
    assert outlined[10, 6].tolist() == [10, 10, 10, 255]
    assert outlined[10, 3, 3] == 0


def test_the_early_bank_is_computed_once(tower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for vendor in views.SEEN_VENDORS:
        (tmp_path / vendor).mkdir()
        Image.new("RGBA", (72, 72), (10, 200, 10, 255)).save(tmp_path / vendor / "U+1.png")
    bank = views.early_bank(tower, tmp_path, ["U+1"], 1, 0, tmp_path / "cache")
    assert bank.shape == (5, 2, 1, 40, 8, 8)
    assert views.feature_bank(tower, bank).shape == (5, 2, 1, 4, 1280)
    monkeypatch.setattr(tower, "early", lambda _: pytest.fail("computed again"))
    assert torch.equal(views.early_bank(tower, tmp_path, ["U+1"], 1, 0, tmp_path / "cache"), bank)


def tiny_blip2(tokenizer) -> Blip2LiteForConditionalGeneration:
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    reader = Blip2QFormerConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, cross_attention_frequency=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, vocab_size=1, max_position_embeddings=1,
    )  # fmt: skip
    config = Blip2LiteConfig(
        vision_config=EfficientNetLiteConfig(image_size=64, grid=2).to_dict(), qformer_config=reader.to_dict(),
        text_config=text.to_dict(), num_query_tokens=32, image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
    )  # fmt: skip
    return Blip2LiteForConditionalGeneration(config).eval()


def test_the_q_former_starts_by_making_the_wanted_tokens(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each query's output is nearest to its own concept's token, of which every one is given to QUERIES / tokens queries."""
    monkeypatch.setattr(blip2_smollm2, "STEPS", 200)
    monkeypatch.setattr(blip2_smollm2, "LR", 5e-3)
    model, given = tiny_blip2(tokenizer), torch.Generator().manual_seed(0)
    bank = torch.randn(1, 1, 3, 4, 1280, generator=given).half().expand(2, 2, -1, -1, -1)
    wanted = torch.randn(3, 4, 32, generator=given)
    blip2_smollm2.start(model, wanted, bank, seed=0)
    with torch.no_grad():
        made = blip2_smollm2.connect(model, bank[0, 0].float()).unflatten(1, (4, 8))
    off = made - wanted.mean(0)[:, None], wanted - wanted.mean(0)
    similar = torch.einsum("ptqd,ctd->ptqc", *(F.normalize(one, dim=-1) for one in off))
    assert (similar.argmax(-1) == torch.arange(3)[:, None, None]).all()
    assert off[0].norm(dim=-1).mean() < 2 * off[1].norm(dim=-1).mean()


def test_a_concept_is_read_as_its_name_or_as_a_trained_backbone_shows_it(tokenizer, tmp_path: Path) -> None:
    model = make_model(tokenizer)
    table = model.get_input_embeddings().weight.detach()
    (name,) = start.name_tokens(model, tokenizer, ["ox"])
    mean = table[tokenizer("ox").input_ids].mean(0)
    torch.testing.assert_close(name[0], mean / mean.norm() * table.norm(dim=1).mean())
    bank = torch.randn(2, 3, 5, 4, 1280, generator=torch.Generator().manual_seed(0)).half()
    connector = {f"connector.{k}": p for k, p in model.named_parameters() if k.startswith(llava_smollm2.CONNECTOR)}
    train.save_weights(tmp_path / "weights.safetensors", connector)
    shown = start.picture_tokens(llava_smollm2, make_model(tokenizer, seed=1), tmp_path / "weights.safetensors", bank)
    with torch.no_grad():
        one, other = (llava_smollm2.connect(model, bank[vendor, 0].float()) for vendor in (0, 1))
    assert shown.shape == (5, 4, 32)
    torch.testing.assert_close(shown, (one + other) / 2)


def test_training_goes_on_from_another_backbones_adapter(tokenizer, tmp_path: Path) -> None:
    """After one step that changes nothing, the adapter has the other's values, layer by layer."""
    batch = train.pack([train.Row(None, [("What?", "ox")])], tokenizer, 4)
    settings = {"steps": 1, "rank": 2, "warmup": 0.1, "seed": 0, "checkpoint": tmp_path / "none.pt"}
    llava, blip2 = (adapt(make(tokenizer), tokenizer, prompt=PROMPT) for make in (make_model, tiny_blip2))
    taught = train.train(llava, llava_smollm2, lambda _: [batch], lr=1e-2, **settings)
    adapter = {k.removeprefix("adapter."): v for k, v in taught.items() if k.startswith("adapter.")}
    found = train.train(blip2, blip2_smollm2, lambda _: [batch], lr=1e-20, adapter_from=adapter, **settings)
    went_on = {k: v for k, v in found.items() if k.startswith("adapter.")}
    assert went_on and any(v.count_nonzero() for k, v in went_on.items() if "lora_B" in k)
    for name, value in went_on.items():
        (own,) = (v for k, v in adapter.items() if k.endswith(name[name.index("layers.") :]))
        assert torch.equal(value, own)


@pytest.mark.parametrize("kind", ["llava", "blip2"])
def test_training_learns_and_its_weights_come_back(kind: str, tokenizer, tmp_path: Path) -> None:
    """A few steps lower the loss; the saved tensors give a fresh model the trained model's answers; a resumed run is the same."""
    make, family = {"llava": (make_model, llava_smollm2), "blip2": (tiny_blip2, blip2_smollm2)}[kind]
    features = torch.randn(1, 1, 2, 4, 1280, generator=torch.Generator().manual_seed(0)).half()
    batch = train.pack(
        [train.Row(features[0, 0, i].float(), [("What?", answer)]) for i, answer in enumerate(("ox", "cat"))],
        tokenizer, {"llava": 4, "blip2": 32}[kind],
    )  # fmt: skip
    settings = {"steps": 60, "lr": 1e-2, "rank": 2, "warmup": 0.1, "seed": 0}
    adapter = adapt(make(tokenizer), tokenizer, prompt=PROMPT)
    with torch.no_grad():
        before = train.loss_of(adapter, family.connect, batch).item()
    tensors = train.train(adapter, family, lambda _: [batch], **settings, checkpoint=tmp_path / "state.pt")
    train.save_weights(tmp_path / "weights.safetensors", tensors)
    fresh = train.apply_weights(make(tokenizer), tmp_path / "weights.safetensors")
    with torch.no_grad():
        after = train.loss_of(adapt(fresh, tokenizer, prompt=PROMPT), family.connect, batch).item()
    assert after < before / 2
    assert (tmp_path / "state.pt").exists()
    resumed = train.train(
        adapt(make(tokenizer), tokenizer, prompt=PROMPT), family, lambda _: [batch], **settings, checkpoint=tmp_path / "state.pt"
    )
    assert all(torch.equal(tensors[name], tensor) for name, tensor in resumed.items())


def test_weights_of_another_backbone_are_refused(tokenizer, tmp_path: Path) -> None:
    train.save_weights(tmp_path / "other.safetensors", {"connector.nowhere": torch.zeros(1)})
    with pytest.raises(UserError, match="not this backbone's"):
        train.apply_weights(make_model(tokenizer), tmp_path / "other.safetensors")


@pytest.mark.parametrize(("sampling", "asked"), [("concept", {(1, 2), (2, 2)}), ("fact", {(1, 1), (2, 3)})])
def test_a_batch_asks_a_picture_by_concept_or_by_fact(sampling: str, asked: set) -> None:
    """Of three concepts, one has no facts, one has a fact and one has three, in two phrasings each."""
    facts = [[Question(c, f"r{r}", f"{c}{r}{p}", "a") for r in range(n) for p in "xy"] for c, n in enumerate((0, 1, 3))]
    questions = {"name": [[Question(c, "name", f"name {c}", "n")] for c in range(3)], "fact": facts}
    draw = train.batches(
        questions, torch.randn(2, 1, 3, 4, 8), [("why?", "so")], images=40, sampling=sampling, texts=1, noise=0.1, packer=list
    )
    rows = [row for part in draw(np.random.default_rng(0)) for row in part]
    assert rows[0].image is None or rows[0].image.shape == (4, 8)
    asked_of = [[q for q, _ in row.branches] for row in rows if row.image is not None]
    found = {(int(name[-1]), len(rest)) for name, *rest in asked_of}
    assert len(asked_of) == 40 and found == (asked | {(0, 0)} if sampling == "concept" else asked)
    if sampling == "fact":  # each fact once, and the concept of three facts three times as often
        assert all(len({question[1] for question in rest}) == len(rest) for _, *rest in asked_of)
        assert 24 <= sum(len(rest) == 3 for _, *rest in asked_of) <= 36


def test_the_model_card_says_what_was_measured() -> None:
    rows = [("m", "naming", v, s, a, 10) for v, s, a in (("Goog", "seen", 0.9), ("FB", "seen", 0.7), ("Twtr", "held-out", 0.5))]
    rows.append(("m, untrained", "text_only", "none", "text", 0.0625, 16))
    table = pd.DataFrame(rows, columns=["backbone", "task", "vendor", "split", "accuracy", "n"])
    settings = Train("one", "tower", 5, 6, "concept", 7, 0.1, 8, 0.0, 0.1)
    text = card("m", "A model.", VisionTower(1, 2, 3, 0.1), {"first": settings}, 762, 945, table)
    assert "| m | naming | seen artists | 0.800 |" in text and "| m | naming | held-out artists | 0.500 |" in text
    assert "| m, untrained | text-only | none | 0.062 |" in text
    assert "  - `first`: 5 steps of 6 pictures, each asked for its name and up to two facts, and 7 texts.\n" in text
    assert "{" not in text and "goes on" not in text
    later = replace(settings, init_from="first", steps=9, sampling="fact")
    for family, words in (("one", "goes on with connector and adapter.\n"), ("two", "goes on with the adapter; the connector, ")):
        chain = {"first": settings, "then": replace(later, family=family)}
        text = card("m", "", VisionTower(1, 2, 3, 0.1), chain, 762, 945, table)
        assert text.index("`first`: 5 steps") < text.index("`then`: 9 steps") and words in text
        assert "all its facts, drawn as often" in text


def test_all_trainings_that_lead_to_one() -> None:
    assert list(trainings(load(), "llava-facts")) == ["llava-smollm2", "llava-more", "llava-facts"]
    assert list(trainings(load(), "blip2-smollm2")) == ["llava-smollm2", "blip2-smollm2"]
