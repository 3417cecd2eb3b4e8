"""Prompt files, their errors, and the data order."""

from collections import Counter
from pathlib import Path

import pytest

from t2i_rl.errors import UserError
from t2i_rl.prompts import shapes_world
from t2i_rl.prompts.order import batch, further_batch
from t2i_rl.prompts.prompt import Prompt, tag_of
from t2i_rl.prompts.reading import REPEATS, load_prompts


def test_the_shapes_world_by_name():
    train, heldout = load_prompts("shapes:train"), load_prompts("shapes:heldout")
    assert [prompt.metadata for prompt in heldout] == shapes_world.prompts("heldout")
    assert all(prompt.metadata["prompt"] == prompt.text for prompt in train)
    assert not {prompt.text for prompt in train} & {prompt.text for prompt in heldout}
    assert {prompt.text for prompt in train} == {record["prompt"] for record in shapes_world.prompts("train")}
    found, drawn = Counter(map(tag_of, train)), Counter(str(r["tag"]) for r in shapes_world.prompts("train"))
    times = {tag: found[tag] / drawn[tag] for tag in drawn}
    assert times["color_attr"] == 1
    assert all(times[tag] == min(REPEATS, drawn["color_attr"] // drawn[tag]) for tag in drawn)


def test_jsonl_keeps_the_object_as_metadata(tmp_path: Path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "a red ring", "tag": "colors"}\n\n{"prompt": "a cross \\u00e0 côté"}\r\n', encoding="utf-8"
    )
    assert load_prompts(str(path)) == [
        Prompt("a red ring", {"prompt": "a red ring", "tag": "colors"}),
        Prompt("a cross à côté", {"prompt": "a cross à côté"}),
    ]


def test_text_file(tmp_path: Path):
    path = tmp_path / "prompts.txt"
    path.write_text("a ring\n\n  two crosses \n")
    assert load_prompts(str(path)) == [Prompt("a ring"), Prompt("two crosses")]


def test_sets_by_name_and_other_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "list.json").write_text('["a ring", {"prompt": "a cross", "tag": "x"}]')
    assert load_prompts(str(tmp_path / "list.json")) == [
        Prompt("a ring", {"prompt": "a ring"}),
        Prompt("a cross", {"prompt": "a cross", "tag": "x"}),
    ]
    (tmp_path / "table.csv").write_text("Prompts,Category\na ring,things\n")
    assert load_prompts(str(tmp_path / "table.csv")) == [Prompt("a ring", {"prompt": "a ring", "category": "things"})]
    monkeypatch.setenv("T2I_RL_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"geneval-train are not here yet: run t2i-rl data make geneval-train"):
        load_prompts("geneval-train")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "geneval-train.jsonl").write_text('{"prompt": "a bench", "tag": "colors"}\n')
    assert load_prompts("geneval-train") == [Prompt("a bench", {"prompt": "a bench", "tag": "colors"})]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no prompts"),
        ("\n \n", "holds no prompts"),
        ('{"prompt": "a"}\n{"prompt": \n', "line 2 is not JSON"),
        ('{"prompt": "a"}\n\n{"text": "b"}\n', "line 3 has no `prompt`"),
        ('["a"]\n', "line 1 has no `prompt`"),
        ('{"prompt": 3}\n', "line 1: `prompt` is 3"),
        ('{"prompt": "  "}\n', "line 1: `prompt` is '  '"),
    ],
)
def test_a_broken_file_names_the_place(tmp_path: Path, text: str, says: str):
    path = tmp_path / "broken.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        load_prompts(str(path))
    assert "broken.jsonl" in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_prompt_file(tmp_path: Path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "folder.txt").mkdir()
    for source, says in (
        (tmp_path / "absent.jsonl", "cannot read"),
        (tmp_path / "folder.txt", "cannot read"),
        (tmp_path / "latin.txt", "not UTF-8"),
        ("shapes:test", "unknown prompts"),
    ):
        with pytest.raises(UserError, match=says):
            load_prompts(str(source))


@pytest.mark.parametrize("size", [1, 3, 7, 10, 23])
def test_every_epoch_visits_each_prompt_once(size: int):
    stream = [index for step in range(30) for index in batch(10, step, size, seed=5)]
    epochs = [stream[start : start + 10] for start in range(0, len(stream) - 9, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_the_order_depends_on_the_seed_and_on_nothing_else():
    assert batch(10, 4, 3, seed=1) == batch(10, 4, 3, seed=1)
    assert batch(10, 0, 10, seed=1) != batch(10, 0, 10, seed=2)


def test_further_prompts_depend_on_seed_step_and_attempt_and_a_larger_size_only_goes_on():
    found = further_batch(10, 4, 1, 10, seed=1)
    assert sorted(found) == list(range(10))
    assert further_batch(10, 4, 1, 3, seed=1) == found[:3]
    assert further_batch(10, 4, 1, 13, seed=1) == found + found[:3]
    for step, attempt, seed in ((4, 2, 1), (5, 1, 1), (4, 1, 2)):
        assert further_batch(10, step, attempt, 10, seed) != found
