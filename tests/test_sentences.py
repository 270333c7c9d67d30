"""The sentence encoder, on real sentences."""

import pytest
import torch

from stages.editing import sentences


def test_minilm_tells_a_rephrasing_from_another_question() -> None:
    if not (sentences.MINILM / "config.json").exists():
        pytest.skip("the sentence encoder is made by the `assets` stage")
    found = sentences.embed(["Which country is this from?", "Where does this originate?", "How many wheels does it have?"])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    assert found[0] @ found[1] > found[0] @ found[2] + 0.1
    alone = torch.cat([sentences.embed([text]) for text in ("Which country is this from?", "Where does this originate?")])
    torch.testing.assert_close(found[:2], alone, atol=1e-5, rtol=1e-4)
