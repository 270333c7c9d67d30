"""The whole chain in a temporary clone on a tiny configuration: real parts and weights, one backbone, two test edits and one dev
edit with a few probes for locality, FT and BalancEdit, which alone chooses its settings on dev.
Other tests run beside it, so that each of the processes that make edits has one thread."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
TINY = {"threads": 1, "evaluated": 3, "texts_evaluated": 8, "test": 2, "dev": 1, "train": 1, "near": 1, "far": 1, "resamples": 50}
ENVIRONMENT = os.environ | {
    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DVC_NO_ANALYTICS": "1",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}  # fmt: skip


def run(clone: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=clone, env=ENVIRONMENT, capture_output=True, text=True)


def dvc(clone: Path, *arguments: str) -> str:
    done = run(clone, sys.executable, "-m", "dvc", *arguments)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Git has or would add, with a tiny params.yaml, reproduced once."""
    clone = tmp_path_factory.mktemp("clone") / "study"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    params = (clone / "params.yaml").read_text()
    params, found = re.subn(r"(?m)^  \w+_published:\n(    .*\n)+", "", params)
    assert found == 8
    others = r"(?m)^  # (FT-L|FT-V|LoRA|IKE|MEND|SERAC|WISE|GRACE):.*\n  \w+:\n(    .*\n)+"
    params, found = re.subn(others, "", params)
    assert found == 8
    second = r"(?m)^  # (It starts from|The same behind) .*\n  blip2-smollm2:\n(    .*\n)+"  # its training, and its parts
    params, found = re.subn(second, "", params)
    assert found == 2
    params = (
        params.replace("  - evqa\n", "")
        .replace("  - blip2-smollm2\n", "")
        .replace("- blip2-smollm2\n", "")
        .replace("  s1: 1\n  s2: 2\n", "")
    )
    params, found = re.subn(r"(?m)^  - (ft_l|ft_v|lora|mend|serac|wise|grace)\n", "", params)
    assert found == 7
    params, found = re.subn(r"(?m)^  # Corrections:.*\n  evqa:\n(    .*\n)+", "", params)
    assert found == 1
    chosen = params.index("  balancedit:\n    editor")
    params = re.sub(r"\[[\d.e, -]+, ([\d.e-]+)\]", r"\1", params[:chosen]) + params[chosen:]
    for key, value in TINY.items():
        params, found = re.subn(rf"(?m)^( *{key}:) \d+$", rf"\1 {value}", params)
        assert found >= 1, key
    (clone / "params.yaml").write_text(params)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "clone"]):
        assert run(clone, "git", *command).returncode == 0
    dvc(clone, "repro")
    return clone


def test_every_output_is_there(clone: Path) -> None:
    assert dvc(clone, "status").strip().endswith("up to date.")
    for name in ("index", "backbone", "okedit", "samples", "edits", "metrics", "ablations", "sequences", "cost", "claims"):
        assert "<h1" in (clone / f"reports/{name}.html").read_text()
    assert (clone / "reports/figures/edit_example.png").stat().st_size > 10_000


def test_a_backbone_does_not_say_whether_the_hub_was_asked(clone: Path) -> None:
    (path,) = (clone / "data/backbones").glob("*/tokenizer_config.json")
    assert "local_files_only" not in json.loads(path.read_text())


def test_balancedit_is_strictly_reliable(clone: Path) -> None:
    scores = pd.read_csv(clone / "reports/scores.csv")
    strict = scores[(scores["protocol"] == "strict") & (scores["metric"] == "reliability")].groupby(["method", "dataset"])["mean"]
    means = strict.first().unstack()
    assert set(means.columns) == {"okedit"}
    assert (means.loc["balancedit"] == 1).all() and (means.loc["base"] == 0).all()
    unedited = scores[(scores["method"] == "base") & (scores["metric"] == "locality")]
    assert (unedited["mean"] == 1).all()


def test_settings_are_chosen_where_there_are_several(clone: Path) -> None:
    used = pd.read_csv(clone / "reports/settings.csv").set_index(["method", "dataset"])
    tried = {"base": 1, "ft": 1, "balancedit": 4, "two_keys": 4}  # the last has the edits of the one before
    assert used["tried"].to_dict() == {(method, "okedit"): count for method, count in tried.items()}
    assert json.loads(used.loc[("ft", "okedit"), "settings"])["lr"] == 1e-3


def test_again_runs_nothing(clone: Path) -> None:
    assert "Running stage" not in dvc(clone, "repro")


def test_another_alpha_makes_no_edit_again(clone: Path) -> None:
    before = json.loads((clone / "reports/metrics.json").read_text())
    output = dvc(clone, "exp", "run", "-S", "radius.alpha=0.9")
    assert re.findall(r"Running stage '([\w@-]+)'", output) == ["scores", "report-results"]
    radii = pd.read_csv(clone / "reports/radii.csv")
    ours = radii[radii["method"] == "balancedit"]
    expected = 0.9 * ours["d_plus"] + 0.1 * ours["d_minus"]
    assert (ours["epsilon"] - expected).abs().max() < 1e-4
    after = json.loads((clone / "reports/metrics.json").read_text())
    assert after["okedit"]["llava-smollm2"]["base"] == before["okedit"]["llava-smollm2"]["base"]
    assert "radius.alpha" in dvc(clone, "exp", "show", "--csv").splitlines()[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("alpha: 0.9", "alpha: 1.5"), "radius.alpha: 1.5"),
        (("strategy: balanced", "strategy: bold"), "radius.strategy: 'bold'"),
        (("span: prompt", "span: pictures"), "key.span: 'pictures'"),
        (("layer: 27", "layer: 127"), "layer: 127"),
    ],
)
def test_a_bad_parameter_is_one_line_and_leaves_outputs(clone: Path, change: tuple[str, str], message: str) -> None:
    path, outcomes = clone / "params.yaml", clone / "data/metrics/outcomes.parquet"
    good, kept = path.read_text(), outcomes.read_bytes()
    try:
        path.write_text(good.replace(*change, 1))
        module = ["stages.editing", "okedit", "llava-smollm2", "balancedit"] if "layer" in message else ["stages.metrics"]
        done = run(clone, sys.executable, "-m", *module)
    finally:
        path.write_text(good)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1] and "allowed" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert outcomes.read_bytes() == kept


def test_unknown_names_on_the_command_line(clone: Path) -> None:
    for words, message in (
        (["okedit", "llava-smollm2", "rome"], "method: 'rome'"),
        (["cocos", "llava-smollm2", "ft"], "dataset: 'cocos'"),
        (["okedit", "gpt", "ft"], "backbone: 'gpt'"),
    ):
        done = run(clone, sys.executable, "-m", "stages.editing", *words)
        assert done.returncode == 2 and message in done.stderr and "allowed" in done.stderr
