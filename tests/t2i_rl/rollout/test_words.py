"""A prompt that holds a control token is refused by name, wherever it is drawn, before anything is."""

from pathlib import Path

import pytest

from models.janus.policy import JanusPolicy
from t2i_rl.cli import main
from t2i_rl.errors import UserError
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.sampler import encode
from t2i_rl.rollout.words import check_prompts

BAD = "a red circle <begin_of_image>"
RECORD = '{"prompt": "a ring", "tag": "single_object", "include": [{"class": "ring", "count": 1}]}\n'
TRAINED = (
    "--rollout.prompts-per-step 1 --rollout.group-size 2 --steps 1 --evaluation.images-per-tag 1 --reward brightness"
)


@pytest.mark.parametrize("token", ["<begin_of_image>", "<|Assistant|>", "<｜▁pad▁｜>", "<unk>", "<BEGIN_OF_IMAGE>"])
def test_a_control_token_is_named_with_its_place(policy: JanusPolicy, token: str) -> None:
    prompts = [Prompt("a < b > c <ring>"), Prompt(f"a {token}: ring", origin="p.txt, line 2")]
    check_prompts(policy, prompts[:1])
    says = f"^p.txt, line 2 holds {token}, a control token of the model: take it out$".replace("|", r"\|")
    with pytest.raises(UserError, match=says):
        check_prompts(policy, prompts)
    with pytest.raises(UserError, match=r"^the prompt 'a "):
        encode(policy, [prompts[1].text], "")
    with pytest.raises(UserError, match=r"^the negative prompt holds"):
        encode(policy, ["a ring"], prompts[1].text)


def test_prompts_without_a_mark_ask_for_no_tokenizer(policy: JanusPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "tokenizer", None)
    check_prompts(policy, [Prompt("a ring")])


def test_a_model_without_control_tokens(policy: JanusPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JanusPolicy, "control_tokens", frozenset())
    check_prompts(policy, [Prompt("a <begin_of_image>")])


@pytest.mark.usefixtures("brightness")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["generate", "a ring", BAD], f"the prompt '{BAD}'"),
        (["generate", "a ring", "bad.txt"], "bad.txt, line 2"),
        (["generate", "a ring", "--negative-prompt", BAD], "the negative prompt"),
        (["heatmap", BAD], f"the prompt '{BAD}'"),
        (["eval", "geneval", "--prompts", "bad.jsonl"], "bad.jsonl, line 2"),
        (["eval", "geneval", "--prompts", "good.jsonl", "--negative-prompt", BAD], "the negative prompt"),
        (["train", *TRAINED.split(), "--prompts", "bad.txt", "--heldout", "good.jsonl"], "bad.txt, line 2"),
        (["train", *TRAINED.split(), "--prompts", "good.jsonl", "--heldout", "bad.txt"], "bad.txt, line 2"),
        (
            [*f"train {TRAINED} --prompts good.jsonl --heldout good.jsonl --contrast".split(), f"text:{BAD}"],
            "contrast",
        ),
        (
            ["train", *TRAINED.split(), "--prompts", "good.jsonl", "--heldout", "good.jsonl", "--negative-prompt", BAD],
            "rollout.sampling.negative-prompt",
        ),
    ],
)
def test_nothing_is_written_for_one(
    words: list[str],
    says: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.txt").write_text(f"a ring\n{BAD}\n")
    Path("good.jsonl").write_text(RECORD)
    Path("bad.jsonl").write_text(RECORD + RECORD.replace("a ring", BAD))
    before = sorted(tmp_path.iterdir())
    assert main([*words, "--model", str(model), "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert error.endswith(f"{says} holds <begin_of_image>, a control token of the model: take it out\n")
    assert error.startswith("t2i-rl: ") and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
