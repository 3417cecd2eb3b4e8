"""The command line: precedence, help without torch, one sentence and the right exit code."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from rewards.catalogue import REWARDS
from t2i_rl.cli import COMMANDS, main
from t2i_rl.commands.train import resolve
from t2i_rl.configuration.presets import preset
from t2i_rl.errors import UserError

REFUSED = [
    ("fly", "there is no command 'fly': choose one of train, generate, eval, compare, heatmap"),
    ("train --model", "Missing value for argument '--model'"),
    ("train --tempo 3", "Unrecognized options: --tempo"),
    ("train --steps many", "invalid literal for int() with base 10: 'many'"),
    ("train --update.schedule cubic", "invalid choice 'cubic' for argument '--update.schedule'"),
    ("train --rollout.group-size 1", "rollout.group-size is 1"),
    ("train --method ppo", "there is no method 'ppo': did you mean vppo? choose one of grpo, cfg"),
    ("train --model huge", "unknown model 'huge': give a folder, a hub id or one of the names tiny"),
    ("trian", "there is no command 'trian': did you mean train? choose one of"),
    ("train --group-size 4", "Unrecognized options: --group-size, 4: did you mean --rollout.group-size?"),
    (
        "train --model some/model",
        "so nothing says what it is to learn: name --reward and --prompts and --heldout, or the",
    ),
    ("train --model some/model --reward geneval --prompts geneval-train", "is to learn: name --heldout, or the preset"),
    (
        "train --reward hpsv2",
        "prompts is shapes:train, but the reward hpsv2 knows no coloured shapes",
    ),
    (
        "train --model janus-pro-7b --reward shapes",
        "prompts is geneval-train, but the reward shapes sees coloured",
    ),
    ("train --prompts", "Missing value for argument '--prompts'"),
    ("train --reward beauty", "there is no reward named 'beauty': choose one of shapes"),
    ("train --reward shapes:much", "the weight 'much' of 'shapes' is no number"),
    ("train --reward shapes@localhost:1", "'localhost:1' in 'shapes@localhost:1' is no address of a server"),
    ("train --reward shapes@http://a:1 --reward-server.timeout 0", "reward-server.timeout is 0.0"),
    ("train --on-reward-failure hope", "invalid choice 'hope' for argument '--on-reward-failure'"),
    ("train --config absent.toml", "absent.toml (No such file or directory)"),
    ("train --resume", "Missing value for argument '--resume'"),
    (
        "train --resume runs/a --method cfg",
        "--method, cfg (see t2i-rl train --resume RUN --help): the other settings of a run stay as they were",
    ),
    ("train --model tiny-vlm --method critical", "method critical looks at places of a picture"),
    ("eval geneval --model tiny-vlm", "tiny-vlm answers in text, and this draws pictures"),
    ("generate", "there is nothing to draw"),
    ("generate ring --batch some", "Error parsing --batch"),
    ("generate ring absent.csv", "cannot read the prompts in absent.csv (No such file or directory)"),
    ("generate absent.parquet", "unknown prompts 'absent.parquet': give shapes:train"),
    ("generate ring --negative-prompt bad.txt", "negative-prompt is 'bad.txt', which names a file"),
    ("generate ring \udcff", r"'\udcff' on the command line holds bytes that are not UTF-8 (\udcff): mend the text"),
    ("train --contrast text:\udcff", "on the command line holds bytes that are not UTF-8"),
    ("train --contrast text:bad.TXT", "contrast is 'bad.TXT', which names a file"),
    ("train --negative-prompt shapes:train", "negative-prompt is 'shapes:train', which names a file or a set"),
    ("heatmap absent.csv", "the prompt is 'absent.csv', which names a file or a set of prompts"),
    ("report runs/a --prompt absent.txt", "the prompt is 'absent.txt', which names a file or a set of prompts"),
    ("eval", "no benchmark is named: use t2i-rl eval geneval"),
    ("eval beauty", "there is no benchmark 'beauty': use t2i-rl eval geneval"),
    ("eval geneval --tempo 3", "Unrecognized options: --tempo"),
    ("eval geneval --model huge", "unknown model 'huge'"),
    ("generate ring --top-p 3", "top-p is 3.0"),
    ("heatmap", "the prompt is missing"),
    ("plan --model huge", "unknown model 'huge'"),
    ("plan --model tiny --gpus 0", "gpus is 0: it has to be at least 1"),
    ("check --model huge", "unknown model 'huge'"),
    ("check --out sheet", "sheet is no name of a PNG: end it in .png"),
    ("check --dtype float8", "invalid choice 'float8'"),
    ("export --model tiny --out out", "tiny has no adapters to merge: name a --format"),
    ("train --lora.rank -1", "lora.rank is -1: it has to be 0 or more"),
    ("serve", "missing: REWARD (see t2i-rl serve --help)"),
    ("serve beauty", "there is no reward named 'beauty': choose one of shapes"),
    ("serve shapes --port 99999", "port is 99999: it has to be in 0..65535"),
    ("serve shapes --batch 0", "batch is 0: it has to be at least 1"),
    ("heatmap ring --group-size x", "Error parsing --group-size"),
]
HELP = [
    "",
    "--help",
    "--version",
    "rewards",
    "presets",
    "presets tiny-shapes-cfg",
    "train --help",
    "train --resume runs/a --help",
    "generate --help",
    "eval --help",
]
HELP += ["eval geneval --help", "heatmap -h", "plan --help", "check --help", "serve --help"]

CHILD = """
import json, sys
from t2i_rl.cli import main
for line in json.loads(sys.argv[1]):
    try:
        main(line.split())
    except SystemExit as stop:
        assert stop.code in (0, None), line
    assert not {"torch", "transformers"} & sys.modules.keys(), line
"""


def test_help_and_argument_errors_import_neither_torch_nor_transformers():
    lines = json.dumps([*HELP, *(words for words, _ in REFUSED)])
    done = subprocess.run([sys.executable, "-c", CHILD, lines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == len(REFUSED)


@pytest.mark.parametrize(("words", "says"), REFUSED)
def test_one_sentence_and_exit_code_2(
    words: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("t2i-rl: ") and says in captured.err
    assert captured.err.count("\n") == 1 and not captured.out
    assert not list(tmp_path.iterdir())


def test_the_table_of_rewards(capsys: pytest.CaptureFixture[str]):
    assert main(["rewards"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["name", "of", "range"] and [row.split()[0] for row in rows] == list(REWARDS)
    assert rows[0].split() == ["shapes", "pictures", "0..1", "nothing"]
    assert main(["rewards", "shapes"]) == 2


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == main([]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS) and "t2i-rl COMMAND --help" in text


def test_the_help_of_train_names_what_is_not_a_setting(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert "--config" in text and "--resume" in text and "--rollout.group-size" in text


def test_flag_over_run_file_over_preset(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text('method = "grpo"\nsteps = 7\nseed = 5\n[rollout]\ngroup-size = 4\n[update]\nbetas = [0.5, 0.6]\n')
    base = preset("tiny", "shapes", "grpo")
    config = resolve(["--seed", "9", "--config", str(file), "--rollout.micro-batch", "2"])
    assert (config.method, config.steps, config.seed) == ("grpo", 7, 9)
    assert (config.rollout.group_size, config.rollout.micro_batch) == (4, 2)
    assert config.update.betas == (0.5, 0.6)
    assert config.update.learning_rate == base.update.learning_rate
    assert config.rollout.sampling == base.rollout.sampling
    assert resolve([f"--config={file}"]).steps == 7
    assert resolve(["--config", str(file), "--steps", "3"]).steps == 3


def test_flags_of_several_kinds():
    words = "--negative-prompt blurry --contrast text:dull --reward-weights strict 1 total 0.5"
    words += " --update.log-prob cfg --update.no-unconditional-gradient"
    config = resolve(words.split())
    assert (config.rollout.sampling.negative_prompt, config.contrast) == ("blurry", "text:dull")
    assert config.reward_weights == {"strict": 1.0, "total": 0.5}
    assert config.update.log_prob == "cfg" and not config.update.unconditional_gradient
    assert resolve([]).contrast is None and resolve(["--contrast", "null"]).contrast == "null"


def test_what_picks_the_preset(tmp_path: Path):
    """A flag that names the model, reward or method decides over the run file, and both over the default."""
    assert resolve([]) == preset("tiny", "shapes", "cfg")
    assert resolve(["--method", "critical"]) == preset("tiny", "shapes", "critical")
    file = tmp_path / "run.json"
    shapes = {"reward": "shapes", "prompts": "shapes:train", "heldout": "shapes:heldout"}
    file.write_text(json.dumps({"method": "grpo", "model": str(tmp_path)} | shapes))
    assert resolve(["--config", str(file)]) == preset(str(tmp_path), "shapes", "grpo")
    assert resolve(["--config", str(file), "--model=tiny"]) == preset("tiny", "shapes", "grpo")
    assert resolve(["--config", str(file), "--method=cfg"]) == preset(str(tmp_path), "shapes", "cfg")


def test_a_run_file_is_refused_by_name(tmp_path: Path):
    for text, says in (
        ("tempo = 3", "unknown key 'tempo'"),
        ('method = ["cfg"]', "has to be of type str"),
        ('method = "ppo"', "there is no method 'ppo'"),
        ("[rollout]\ngroup-size = 0", "rollout.group-size is 0"),
        ("steps =", "is not valid TOML"),
        ('{"contrast": "dull \\ud83d"}', r"contrast holds half of a character \(\\ud83d\)"),
    ):
        file = tmp_path / ("run.json" if text.startswith("{") else "run.toml")
        file.write_text(text)
        with pytest.raises(UserError, match=says):
            resolve(["--config", str(file)])


def test_a_path_that_cannot_be_written(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"
    assert main(["generate", "ring", "--model", str(model), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"t2i-rl: cannot use {tmp_path / 'file'}") and error.count("\n") == 1


def test_a_disk_that_is_full(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def full(arguments: Sequence[str]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def lost(arguments: Sequence[str]) -> None:
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    monkeypatch.setitem(COMMANDS, "train", full)
    assert main(["train"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.setitem(COMMANDS, "train", lost)
    with pytest.raises(ConnectionResetError):  # no sentence would help: a bug keeps its traceback
        main(["train"])


def test_several_rewards_need_no_quotes():
    words = ["geneval:1.0", "hpsv2:0.5@http://a:1,http://b:2"]
    more = ["--prompts", "geneval-train", "--heldout", "geneval-heldout"]
    assert resolve(["--reward", *words, *more]).reward == " ".join(words)
    assert resolve([*more, "--reward", " ".join(words)]).reward == " ".join(words)
    assert resolve([]).reward == "shapes"


def test_an_error_does_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "a \x1b[2J ring", "tag": "\x1b]0;x\x07", "include": [1]}) + "\n")
    assert (
        main(
            ["train", "--model", "tiny", "--method", "grpo", "--prompts", str(prompts), "--out", str(tmp_path / "run")]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert r"a \x1b[2J ring" in error and "\x1b" not in error and error.count("\n") == 1


def test_a_training_run_is_no_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text("{}")
    assert main(["compare", str(tmp_path / "run")]) == 2
    assert f"is a training run, not an evaluation: t2i-rl report {tmp_path / 'run'}" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_said_before_anything_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rewards.registry.build", None)
    (tmp_path / "nothing").mkdir()
    words = ["--model", str(tmp_path / "nothing"), "--prompts", "shapes:heldout", "--device", "cpu"]
    assert main(["eval", "geneval", *words]) == 2
    assert "nothing holds is unknown: give a checkpoint" in capsys.readouterr().err
