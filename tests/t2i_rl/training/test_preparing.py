"""What a run settles before its first step: what it refuses, what it says, how much it samples at once."""

import json
import shutil
from pathlib import Path

import pytest

from rewards.catalogue import REWARDS, RewardEntry
from rewards.cut import Cut
from t2i_rl.cli import main
from t2i_rl.commands.train import resolve
from t2i_rl.configuration.config import read_config
from t2i_rl.planning import rollout_batch
from t2i_rl.training.announcements import LOADING
from t2i_rl.training.run import start
from tests.t2i_rl.small_runs import Brightness, train_words
from tests.t2i_rl.training.runs import refused

pytestmark = pytest.mark.usefixtures("brightness")


def test_a_folder_that_exists_is_left_alone(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "notes").write_text("mine")
    assert "exists: continue it with --resume" in refused(capsys, *train_words(model, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--prompts", "broken.jsonl"), "broken.jsonl, line 2 is not JSON"),
        (("--heldout", "broken.jsonl"), "broken.jsonl, line 2 is not JSON"),
        (("--prompts", "nameless.jsonl"), "nameless.jsonl, line 1 has no `prompt`"),
        (("--prompts", "empty.txt"), "empty.txt holds no prompts"),
        (("--reward", "shapes"), "the metadata lack the key 'tag'"),
        (("--reward", "beauty"), "there is no reward named 'beauty'"),
        (("--method", "ppo"), "there is no method 'ppo'"),
        (("--model", "no-such-model"), "unknown model 'no-such-model'"),
        (("--model", "another-grid"), "num_patches is 6, but vision_config's image_size // patch_size is 4"),
        (("--rollout.group-size", "1"), "rollout.group-size is 1"),
    ],
)
def test_what_is_refused_leaves_no_folder(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    says: str,
):
    monkeypatch.chdir(tmp_path)
    Path("broken.jsonl").write_text('{"prompt": "a ring"}\n{"prompt": \n')
    Path("nameless.jsonl").write_text('{"text": "a ring"}\n')
    Path("empty.txt").write_text("\n")
    shutil.copytree(model, "another-grid")
    config = json.loads((model / "config.json").read_text())
    config["vq_config"]["num_patches"] = 6
    Path("another-grid/config.json").write_text(json.dumps(config))
    assert says in refused(capsys, *train_words(model, tmp_path / "run", "cfg", *more))
    assert not (tmp_path / "run").exists()


def test_prompts_that_are_cut_are_counted_at_the_start(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    class Short(Brightness):
        def check(self, prompts, metadata) -> list[Cut]:
            return [Cut("short", 4, len(prompts) - 1)]

    monkeypatch.setitem(REWARDS, "brightness", RewardEntry(lambda device: Short()))
    monkeypatch.setattr("t2i_rl.training.preparing.cut_by", lambda policy, name, prompts: [Cut(name, 3, len(prompts))])
    monkeypatch.setattr("t2i_rl.training.run._train", lambda trainer, *_, **__: trainer.config.out)
    assert main(train_words(model, tmp_path / "run")) == 0
    said = capsys.readouterr().out.splitlines()
    said = said[said.index(LOADING) + 1 :][:4]
    assert [line.partition(":")[0] for line in said] == [
        f"{number} of 3 {which} prompts are longer than the {tokens} tokens that {reader} reads"
        for which in ("training", "held-out")
        for number, tokens, reader in ((3, 3, model), (2, 4, "short"))
    ]


def test_a_run_from_python_samples_as_many_prompts_as_the_card_holds(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As one from the command line does."""
    monkeypatch.setattr(rollout_batch, "kin", lambda model: "janus-pro-1b")
    monkeypatch.setattr(rollout_batch, "device_of", lambda device: "cuda")
    monkeypatch.setattr(rollout_batch, "memory_of", lambda device: 80 * 10**9)
    config = resolve(train_words(model, tmp_path / "run", "cfg", "--steps", "1")[1:])
    assert config.rollout.micro_batch == 0
    assert read_config(start(config) / "config.json").rollout.micro_batch == 2
