"""The codebook by hand: nearest-key routing, what a sequence of edits does to radii, batches that mix entries."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.backbone.vlm import Query, mean_over
from stages.editing.codebook import UNEDITED, Codebook, Entry
from stages.editing.conflicts import RULES
from stages.editing.edits import Edit
from stages.editing.transform import Layer, LowRank, Value, compress
from stages.params import UserError


def entry(x: float, radius: float, target: str = "a", edit: Edit | None = None) -> Entry:
    return Entry(torch.tensor([x, 0.0]), radius, target, edit or Edit(None))


def at(*xs: float) -> torch.Tensor:
    return torch.tensor([[x, 0.0] for x in xs])


def test_an_empty_codebook_answers_nothing() -> None:
    assert Codebook().route(at(0, 1)).tolist() == [UNEDITED, UNEDITED]


def test_the_nearest_key_decides_and_its_border_belongs_to_it() -> None:
    book = Codebook(entries=[entry(0, 1), entry(10, 5, "b")])
    assert book.route(at(0, 1, 1.5, 4.9, 5.1, 15, 15.1)).tolist() == [0, 0, UNEDITED, UNEDITED, 1, 1, UNEDITED]


def test_a_wide_entry_does_not_answer_for_a_nearer_narrow_one() -> None:
    book = Codebook(entries=[entry(0, 100), entry(10, 1, "b")])
    assert book.route(at(8)).tolist() == [UNEDITED]


def test_a_query_without_the_keys_span_is_never_inside() -> None:
    assert Codebook(entries=[entry(0, 100)]).route(torch.full((1, 2), float("nan"))).tolist() == [UNEDITED]


def test_cosine_distance_by_hand() -> None:
    book = Codebook("cosine", [entry(2, 0.5)])
    assert book.distances(torch.tensor([[5.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]))[:, 0].tolist() == pytest.approx([0, 1, 2])


def test_same_target_continues_and_widens() -> None:
    again = Edit(None, steps=7)
    book = Codebook(entries=[entry(0, 3)])
    assert book.continues(at(2)[0], "a") == 0
    assert book.add(entry(2, 2, edit=again)) == 0
    assert [(e.radius, e.edit, e.key.tolist()) for e in book.entries] == [(4.0, again, [0, 0])]


def test_same_target_outside_gets_its_own_entry() -> None:
    book = Codebook(entries=[entry(0, 3)])
    assert book.add(entry(4, 2)) == 1
    assert [e.radius for e in book.entries] == [3, 2]


def test_a_conflict_shrinks_both() -> None:
    book = Codebook(entries=[entry(0, 3)])
    assert book.continues(at(2)[0], "b") == UNEDITED
    assert book.add(entry(2, 5, "b")) == 1
    assert [e.radius for e in book.entries] == [1, 1]
    assert book.route(at(0, 2)).tolist() == [0, 1]


def test_a_new_wide_entry_yields_to_a_key_it_would_cover() -> None:
    book = Codebook(entries=[entry(0, 1)])
    book.add(entry(4, 5, "b"))
    assert [e.radius for e in book.entries] == [1, 2]


def test_without_shrinking_the_nearer_key_answers() -> None:
    book = Codebook(entries=[entry(0, 3)], rule="nearest")
    book.add(entry(2, 5, "b"))
    assert [e.radius for e in book.entries] == [3, 5]
    assert book.route(at(0, 0.9, 1.1, 6, -2.9)).tolist() == [0, 0, 1, 1, 0]


@pytest.mark.parametrize("rule", RULES)
def test_a_fact_that_is_edited_again_gets_its_newest_answer(rule: str) -> None:
    """The same query, read in another batch, lies a rounding away."""
    book = Codebook(entries=[entry(0, 3)], rule=rule)
    book.add(entry(1e-6, 2, "b"))
    assert book.route(at(-1e-6, 0, 1.9, 2.5)).tolist() == [1, 1, 1, UNEDITED]
    book.add(entry(0, 1, "c"))
    assert book.route(at(0, 1.5)).tolist() == [2, UNEDITED]
    assert book.add(entry(0.5, 1, "a")) == 3  # what is gone takes nothing in


edits = st.tuples(st.integers(-20, 20), st.integers(1, 20), st.sampled_from("abc"))


@given(st.lists(edits, min_size=1, max_size=12, unique_by=lambda e: e[0]))
def test_no_entry_covers_the_key_of_another_target(sequence: list[tuple[int, int, str]]) -> None:
    book = Codebook()
    for x, radius, target in sequence:
        index = book.add(entry(x, radius, target))
        assert book.entries[index].target == target
    apart = book.distances(torch.stack([e.key for e in book.entries]))
    for i, one in enumerate(book.entries):
        for j, other in enumerate(book.entries):
            assert one.target == other.target or apart[i, j] > one.radius


def test_a_batch_whose_rows_go_to_different_entries(backbone) -> None:
    """Each row is what its own entry alone would give; an unedited row is what the model gives."""
    queries = [Query("What is it?", "red"), Query("Who?", None), Query("What is it, then?", "noise")]
    prompts = backbone.prompts(queries)
    trunk = backbone.prefill(prompts)
    phi = mean_over(trunk.inputs, prompts.spans["prompt"])
    weight = backbone.edited.weight
    edits = [Edit(Layer(k * weight)) for k in (0.5, -2.0)]
    book = Codebook(entries=[Entry(phi[0], 1e-3, "a", edits[0]), Entry(phi[2], 1e-3, "b", edits[1])])
    chosen = book.route(phi)
    assert chosen.tolist() == [0, UNEDITED, 1]
    with torch.no_grad(), book.applied(backbone, prompts.mask, chosen):
        mixed = backbone.tail(trunk.hidden, prompts.mask, prompts.positions, 1)
    for row, edit in enumerate((edits[0], Edit(None), edits[1])):
        with torch.no_grad(), edit.applied(backbone, prompts.mask):
            alone = backbone.tail(trunk.hidden, prompts.mask, prompts.positions, 1)
        torch.testing.assert_close(mixed[row], alone[row])
    assert not backbone.edited._forward_hooks


def test_the_released_code_shares_one_copy_and_overwrites_radii() -> None:
    first, second = Edit(steps=1), Edit(steps=2)
    book = Codebook(entries=[entry(0, 3, edit=first)], faithful_code=True)
    assert book.continues(at(50)[0], "b") == 0  # goes on training the copy of whichever came last
    assert book.add(entry(50, 7, "b", second)) == 1
    assert [(e.radius, e.edit, e.target) for e in book.entries] == [(7, second, "a"), (7, second, "b")]
    assert Codebook(faithful_code=True).continues(at(0)[0], "a") == UNEDITED


def test_a_codebook_comes_back_as_it_was(backbone, tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = Layer(torch.rand(48, 32, generator=generator))
    value = Value(torch.rand(48, generator=generator), "last")
    low = LowRank(torch.rand(2, 32, generator=generator), torch.rand(48, 2, generator=generator))
    entries = [entry(1, 0.25, "a", Edit(layer)), entry(2, 0.5, "ox é", Edit(value)), entry(3, 1), entry(4, 1, "c", Edit(low))]
    book = Codebook("cosine", entries, True)
    book.save(tmp_path / "book.safetensors", backbone)
    assert [path.name for path in tmp_path.iterdir()] == ["book.safetensors"]
    again = Codebook.load(tmp_path / "book.safetensors", backbone)
    assert (again.distance, again.faithful_code) == ("cosine", True)
    assert [(e.radius, e.target, e.key.tolist()) for e in again.entries] == [
        (e.radius, e.target, e.key.tolist()) for e in book.entries
    ]
    assert torch.equal(again.entries[0].edit.output.weight, layer.weight) and again.entries[0].edit.output.bias is None
    assert torch.equal(again.entries[1].edit.output.value, value.value) and again.entries[1].edit.output.where == "last"
    assert again.entries[2].edit.changes_nothing
    kept = again.entries[3].edit.output
    assert torch.equal(kept.a, low.a) and torch.equal(kept.b, low.b)


def test_a_loaded_codebook_answers_as_the_saved_one(backbone, tmp_path) -> None:
    prompts = backbone.prompts([Query("What is it?", "red"), Query("Who?", None)])
    trunk = backbone.prefill(prompts)
    phi = mean_over(trunk.inputs, prompts.spans["prompt"])
    book = Codebook(entries=[Entry(phi[0], 0.1, "a", Edit(Layer(-backbone.edited.weight)))])
    book.save(tmp_path / "book.safetensors", backbone)
    said = []
    for one in (book, Codebook.load(tmp_path / "book.safetensors", backbone)):
        with torch.no_grad(), one.applied(backbone, prompts.mask, one.route(phi)):
            said.append(backbone.tail(trunk.hidden, prompts.mask, prompts.positions, 1))
    assert torch.equal(*said)


def test_an_empty_codebook_is_kept_too(backbone, tmp_path) -> None:
    Codebook().save(tmp_path / "book.safetensors", backbone)
    assert Codebook.load(tmp_path / "book.safetensors", backbone) == Codebook()


def test_a_codebook_of_another_backbone_or_none_is_refused(backbone, tmp_path) -> None:
    path = tmp_path / "book.safetensors"
    Codebook(entries=[entry(0, 1)]).save(path, backbone)
    backbone.fingerprint = "another"
    with pytest.raises(UserError, match="fingerprint: 'tiny' is not allowed; allowed: 'another'"):
        Codebook.load(path, backbone)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="not a readable codebook"):
        Codebook.load(path, backbone)
    with pytest.raises(UserError, match="not a readable codebook"):
        Codebook.load(tmp_path / "none.safetensors", backbone)


def test_only_edits_of_the_edited_map_that_are_data_can_be_kept(backbone, tmp_path) -> None:
    book = Codebook(entries=[entry(0, 1, edit=Edit(lambda inputs, unedited, prompt: unedited))])
    with pytest.raises(TypeError, match="Layer, LowRank, Value or None"):
        book.save(tmp_path / "book.safetensors", backbone)
    with pytest.raises(TypeError, match="no `prefix`"):
        entry(0, 1, edit=Edit(prefix=(1,)))


def test_one_pass_routes_reads_and_answers(backbone) -> None:
    """`answering` gives what routing first and applying then gives, for the prompt and for the tokens that follow it."""
    queries = [Query("What is it?", "red"), Query("Who?", None), Query("What is it, then?", "noise")]
    prompts = backbone.prompts(queries)
    phi = mean_over(backbone.prefill(prompts).inputs, prompts.spans["prompt"])
    value = torch.linspace(-1, 1, backbone.edited.out_features)
    edits = [Edit(Layer(-2.0 * backbone.edited.weight)), Edit(Value(value, "prompt"))]
    book = Codebook(entries=[Entry(phi[0], 1e-3, "a", edits[0]), Entry(phi[2], 1e-3, "b", edits[1])])
    told = torch.tensor([[5, 6], [7, 8], [9, 10]])
    with book.answering(backbone, prompts, "prompt"):
        trunk = backbone.prefill(prompts)
        final = backbone.extend(trunk, told)[-1]
    plain = backbone.prefill(prompts)
    more, _, _ = backbone.extend(plain, told)
    hidden, mask = torch.cat([plain.hidden, more], 1), torch.cat([prompts.mask, torch.ones(3, 2, dtype=torch.bool)], 1)
    with torch.no_grad(), book.applied(backbone, prompts.mask, book.route(phi)):
        expected = backbone.tail(hidden, mask, prompts.positions, 3)
    torch.testing.assert_close(final, expected, atol=1e-5, rtol=1e-5)
    assert not backbone.edited._forward_hooks


def test_the_nearest_difference_of_a_rank() -> None:
    """Of diag(3, 2, 1) the nearest of rank 2 keeps 3 and 2; at full rank nothing is lost."""
    unedited = torch.ones(3, 3)
    weight = unedited + torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    inputs = torch.eye(3)[None]
    kept = compress(weight, unedited, 2)(inputs, inputs @ unedited.T, torch.ones(1, 3, dtype=torch.bool))[0]
    torch.testing.assert_close(kept, unedited + torch.diag(torch.tensor([3.0, 2.0, 0.0])))
    whole = compress(weight, unedited, 3)
    torch.testing.assert_close(whole.b @ whole.a, weight - unedited)
