"""Whatever stands in params.yaml, it is read into a valid Params or refused in one line, at once."""

import copy
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from stages.editing.declared import declared
from stages.params import Params, UserError, load
from stages.sections import refuse
from stages.settings import DRAWS, STAGES, Dataset
from tests.test_params import TEXT

SETTINGS = {path.stem: declared(path.stem).Settings for path in (STAGES / "editing/editors").glob("[a-z]*.py")}
RAW = YAML(typ="safe", pure=True).load(TEXT)


def changed(folder: Path, *keys: Any, value: Any) -> Params:
    """The committed file with one key, of the real stages, set to `value`."""
    raw = copy.deepcopy(RAW)
    at = raw
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    path = folder / "params.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(raw, file)
    return load(path)


def refusal(text: str, folder: Path) -> str:
    """The one line that a file ends in, within a second."""
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    begun = time.perf_counter()
    with pytest.raises(UserError) as caught:
        load(path)
    line = str(caught.value)
    assert time.perf_counter() - begun < 1 and "\n" not in line and len(line) < 600
    return line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TEXT.replace("seed: 0", f"seed: {'9' * 400}"), "seed: 999"),
        (TEXT.replace("seed: 0", f"seed: {'9' * 5000}"), "params.yaml: not valid YAML: "),
        (TEXT.replace("cache: 4", f"cache: {'9' * 400}"), "cache: 999"),
        (TEXT.replace("cache: 4", f"cache: -{'9' * 400}"), "cache: -999"),
        (TEXT.replace("cache: 4", "cache: 1e999"), "cache: inf is not allowed"),
        (TEXT.replace("seed: 0", f"seed: {'[' * 3000}{']' * 3000}"), "lists or sections are nested too deeply"),
        (TEXT.replace("seed: 0", f"seed: {'{a: ' * 3000}"), "params.yaml: not valid YAML: "),
        (TEXT.replace("seed: 0", "seed: &a [*a]"), "seed: [[[[...]]]] is not allowed"),
        (TEXT.replace("seed: 0", "seed: &a {b: *a}"), "seed: {'b': "),
        (TEXT.replace("seed: 0", "seed: 2020-13-45"), "params.yaml: not valid YAML: "),
        (TEXT.replace("seed: 0", "seed: !!python/object/apply:os.system [echo ran]"), "params.yaml: not valid YAML: line "),
        (TEXT.replace("seed: 0", "? [a, b]\n: 0"), "('a', 'b'): 0: unknown key; allowed: seed, "),
        (TEXT.replace("seed: 0", "seed: \x00"), "params.yaml: not valid YAML: "),
        (TEXT.replace("seed: 0", f"seed: {'x' * 10**5}"), "seed: 'xxx"),
        (TEXT.replace("seed: 0", f"seed: {'- ' * 3000}"), "params.yaml: not valid YAML: "),
        (TEXT.replace("seed: 0", f"seed:\n  {'- ' * 3000}"), "params.yaml: not valid YAML: "),
        (TEXT.replace("seed: 0", f"seed: {'x' * 10**6}"), " bytes; allowed: at most "),
        (TEXT.replace("resamples: 1000", f"resamples: {10**12}"), f"allowed: a whole number from 1 to {DRAWS}"),
        (TEXT.replace("permutations: 10000", f"permutations: {10**12}"), f"allowed: a whole number from 1 to {DRAWS}"),
        (TEXT.replace("batch: 8", f"batch: {10**12}"), "batch: 1000000000000 is not allowed; allowed: a whole"),
        (TEXT.replace("s1: 1", "s1: 0"), "seeds.s1: 0 is not allowed; allowed: another value than that of s0"),
        (TEXT.replace("datasets:\n", "datasets:\n  1: {}\n", 1), "datasets: the name: 1 is not allowed; allowed: a text"),
        (TEXT.replace("seeds:\n", "seeds:\n  null: 1\n"), "seeds: the name: None is not allowed"),
        (TEXT.replace("s1: 1", f"{'s' * 300}: 1"), "is not allowed; allowed: 1 to 60 of lower-case letters"),
        (TEXT.replace("    layer: 27", "    layer: 30", 1), "backbones.llava-smollm2.layer: 30 is not allowed; allowed: 0 to 29"),
        (TEXT.replace("where: 6", "where: 30"), "keys.picture_6.where: 30 is not allowed; allowed: 0 to 29"),
        (TEXT.replace("24, 29]", "24, 30]"), "layers.at: 30 is not allowed; allowed: 0 to 29, the decoder layers of"),
        (TEXT.replace("editor: base\n    router: never", "editor: base\n    router: builtin"), "methods.base.router"),
    ],
)  # fmt: skip
def test_a_hostile_file_is_one_line_at_once(text: str, words: str, tmp_path: Path) -> None:
    assert text != TEXT
    assert words in refusal(text, tmp_path)


def test_a_text_that_doubles_itself_is_not_written_out(tmp_path: Path) -> None:
    doubled = "\n".join(f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]" for i in range(12))
    for key in ("seed", "edited", "device", "radius"):
        assert len(refusal(TEXT + f"more:\n{doubled}\n", tmp_path)) < 600
        with pytest.raises(UserError, match=f"^{key}"):
            changed(tmp_path, key, value=YAML(typ="safe", pure=True).load(f"more:\n{doubled}\n")["more"]["a11"])


def test_a_name_that_yaml_reads_as_another_type_is_no_second_entry(tmp_path: Path) -> None:
    text = TEXT.replace("seeds:\n", 'seeds:\n  1: 7\n  "1": 8\n')
    assert "seeds: the name: 1 is not allowed; allowed: a text, in quotes" in refusal(text, tmp_path)


def test_an_unknown_key_of_a_dataset_is_offered_only_what_is_taken(tmp_path: Path) -> None:
    from stages.okedit.sources.embedded import Settings

    dataset: Dataset = changed(tmp_path, "datasets", "okedit", "nera", value=3).dataset("okedit")
    with pytest.raises(UserError, match=r"okedit\.nera: 3: unknown key; allowed: ") as caught:
        dataset.settings(Settings)
    for offered in str(caught.value).partition("allowed: ")[2].split(", "):
        value = RAW["datasets"]["okedit"].get(offered, 1)
        changed(tmp_path, "datasets", "okedit", offered, value=value).dataset("okedit").settings(Settings)
    with pytest.raises(UserError, match="own: {}: unknown key"):
        changed(tmp_path, "datasets", "okedit", "own", value={}).dataset("okedit").settings(Settings)


def test_a_grid_that_would_never_end_is_refused(tmp_path: Path) -> None:
    method = changed(tmp_path, "methods", "ft", "lr", value=[1e-3] * 1001).method("ft")
    with pytest.raises(UserError, match="methods.ft: 1001 combinations to choose from; allowed: at most 1000"):
        method.grid(declared("finetune").Settings)


def test_a_number_of_any_length_can_be_refused() -> None:
    assert "too long to show" in str(refuse("seed", 10**5000, "less")) or len(str(refuse("seed", 10**5000, "less"))) < 200


# -- any type in any place ---------------------------------------------------------------------------------------------------


def places(section: Any, at: tuple = ()) -> list[tuple]:
    """The keys that lead to every section, list and value of the file."""
    inner = section.items() if isinstance(section, dict) else enumerate(section) if isinstance(section, list) else ()
    return [(*at, key) for key, _ in inner] + [deeper for key, own in inner for deeper in places(own, (*at, key))]


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**400), 10**400), st.floats(), st.text(max_size=20),
    st.binary(max_size=5), st.dates(), st.sampled_from(["dev", "tower", "ft", "llava-smollm2", "1", "../x", "a\nb", "\u202e"]),
)  # fmt: skip
KEYS = st.one_of(st.text(max_size=8), st.integers(), st.booleans(), st.none(), st.floats(), st.dates())
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(places(RAW)), ANYTHING)
def test_any_value_in_any_place_is_read_or_refused_in_one_line(monkeypatch_parse, place: tuple, value: Any) -> None:
    raw = copy.deepcopy(RAW)
    at = raw
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    told(monkeypatch_parse, raw)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([place for place in places(RAW) if not isinstance(place[-1], int)]), KEYS, ANYTHING)
def test_any_key_beside_another_is_read_or_refused_in_one_line(monkeypatch_parse, place: tuple, key: Any, value: Any) -> None:
    raw = copy.deepcopy(RAW)
    at = raw
    for one in place[:-1]:
        at = at[one]
    at[key] = value
    told(monkeypatch_parse, raw)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(UserError) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.fixture()
def monkeypatch_parse(monkeypatch: pytest.MonkeyPatch) -> list:
    """What stands for the file that is read: a list of one."""
    holder: list = [None]
    monkeypatch.setattr("stages.params.parse", lambda path: holder[0])
    return holder


def told(holder: list, raw: Any) -> None:
    """Load what YAML may have made of a file, and what only editors read of it."""
    holder[0] = raw
    try:
        params = load()
        for method in params.methods.values():
            method.grid(SETTINGS[method.editor])
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500
    else:
        assert isinstance(params, Params)
