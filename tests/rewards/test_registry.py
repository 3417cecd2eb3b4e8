"""Rewards by name."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rewards import catalogue
from rewards.catalogue import REWARDS
from rewards.errors import RewardError
from rewards.judges.forms import read_form
from rewards.registry import build
from rewards.reward import score_images
from tests.parity.golden import DEFAULT
from tests.rewards.servers import serving
from tests.rewards.tiny_clip import save_tiny_clip
from tests.rewards.tiny_scorers import save_detector


@pytest.mark.parametrize("name", [name for name in REWARDS if name.startswith("shapes")])
def test_what_needs_no_weights_is_built(name: str) -> None:
    reward = build(name)
    assert callable(reward.score)
    assert reward.name


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_RL_DETECTOR", str(DEFAULT / "mask2former" / "weights.safetensors"))
    monkeypatch.setenv("T2I_RL_CLIP", str(save_tiny_clip(tmp_path / "clip")))


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("rules", ["partial", "official", "partial-released"])
def test_geneval_is_built_from_local_weights(rules: str) -> None:
    reward = build("geneval" if rules == "partial" else f"geneval-{rules}")
    assert reward.name.startswith(f"geneval-{rules} (mask2former weights.safetensors")
    assert "unofficial weights" in reward.name


@pytest.mark.usefixtures("weights")
def test_the_swap_of_the_training_servers_has_a_name_of_its_own() -> None:
    swapped, plain = build("geneval-partial-released-swapped"), build("geneval-partial-released")
    assert swapped.name == plain.name.removesuffix(")") + ", red and blue swapped)"


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("name", ["geneval-facebook", "geneval-facebook-official"])
def test_facebooks_detector_is_never_called_official(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("geneval").detector.model  # type: ignore[attr-defined]
    model.save_pretrained(tmp_path / "facebook")
    monkeypatch.setenv("T2I_RL_DETECTOR_FACEBOOK", str(tmp_path / "facebook"))
    rules = "official" if name.endswith("official") else "partial"
    assert build(name).name == f"geneval-{rules} (mask2former facebook, unofficial weights)"


def test_mmdetection_asks_for_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmdet", None)
    monkeypatch.delitem(sys.modules, "rewards.detectors.mmdet", raising=False)
    with pytest.raises(RewardError, match=r"mmdet-requirements\.txt"):
        build("geneval-mmdet")


@pytest.mark.usefixtures("weights")
def test_geneval_scores_the_same_over_http_and_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_RL_DETECTOR", str(save_detector(tmp_path / "detector.safetensors")))
    reward = build("geneval")
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (side, 48, 3), dtype=np.uint8) for side in (48, 48, 32)]
    include = [{"class": "bottle", "count": count, "color": "green"} for count in (1, 4)]
    asked = (["a photo"] * 3, [{"tag": "colors", "include": include}] * 3)
    scores = score_images(reward, images, *asked)
    assert scores.total.unique().numel() > 1
    with serving(reward, "geneval") as address:
        served = score_images(build(f"geneval@{address}"), images, *asked)
    assert torch.equal(served.total, scores.total) and served.reasons == scores.reasons
    assert torch.equal(served.parts["strict"], scores.parts["strict"])
    alone = [score_images(reward, [image], asked[0][:1], asked[1][:1]).total for image in images]
    torch.testing.assert_close(torch.cat(alone), scores.total)


def test_every_range_goes_up() -> None:
    assert all(bad < good for bad, good in (entry.range for entry in REWARDS.values()))


def test_an_unknown_name_is_answered_with_the_names() -> None:
    with pytest.raises(
        RewardError, match=r"no reward named 'shape': did you mean shapes\? choose one of shapes, shapes-official"
    ):
        build("shape")


def test_the_names_are_listed_without_torch() -> None:
    check = "import sys, rewards.registry; assert rewards.registry.REWARDS; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


DOCUMENT = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")


def test_every_name_and_variable_is_in_the_table_of_the_docs() -> None:
    table = DOCUMENT.split("\n\n")[1]
    source = Path(catalogue.__file__).read_text(encoding="utf-8")
    for named in [*REWARDS, *re.findall(r'"(T2I_RL_\w+)"', source)]:
        assert f"`{named}`" in table, named


def test_the_form_in_the_docs_is_one(tmp_path: Path) -> None:
    (tmp_path / "form.json").write_text(DOCUMENT.split("```json\n")[1].split("```")[0])
    assert read_form(tmp_path / "form.json").words == {"yes": 5, "partly": 3, "no": 1}


def test_the_shapes_need_nothing_beyond_the_servers_own_requirements() -> None:
    """And what needs more says what to install."""
    check = (
        "import sys\n"
        "for name in ('open_clip', 'transformers', 'torchvision', 'httpx', 'huggingface_hub', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "import rewards.server, rewards.http.app\n"
        "from rewards.registry import REWARDS, build\n"
        "from rewards.errors import RewardError\n"
        "for name in (one for one, entry in REWARDS.items() if entry.scores == 'pictures'):\n"
        "    try:\n"
        "        build(name)\n"
        "    except RewardError as error:\n"
        "        assert 'requirements' in str(error), error\n"
        "        assert not name.startswith('shapes')\n"
        "    else:\n"
        "        assert name.startswith('shapes'), name\n"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
