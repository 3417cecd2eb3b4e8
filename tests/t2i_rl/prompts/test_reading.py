"""Prompt files, their errors, and the data order."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from t2i_rl.errors import UserError
from t2i_rl.prompts import shapes_world
from t2i_rl.prompts.order import batch, further_batch
from t2i_rl.prompts.prompt import Prompt, prompts_digest, tag_of
from t2i_rl.prompts.reading import REPEATS, load_prompts, names_prompts


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
    ("name", "text", "metadata"),
    [
        ("a.json", '[{"Prompt": "a ring", "Category": "x"}]', {"prompt": "a ring", "Category": "x"}),
        ("a.jsonl", '{"Prompts": "a ring", "id": 1}', {"prompt": "a ring", "id": 1}),
        ("a.jsonl", '{"prompt": "a ring", "Prompt": "long"}', {"prompt": "a ring", "Prompt": "long"}),
        ("a.JSONL", '{"prompt": "a ring"}', {"prompt": "a ring"}),
        ("A.TXT", "a ring\n", {}),
        ("a.tsv", 'Prompt\tCategory\n\na ring\t"x\ty"\n', {"prompt": "a ring", "category": "x\ty"}),
        ("a.Csv", "id,PROMPTS \n1,a ring\n", {"id": "1", "prompt": "a ring"}),
    ],
)
def test_files_as_others_write_them(tmp_path: Path, name: str, text: str, metadata: dict[str, object]):
    (tmp_path / name).write_text(text)
    assert load_prompts(str(tmp_path / name)) == [Prompt("a ring", metadata)]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", '[{"Caption": "a ring", "id": 3}]', "entry 1 has no `prompt`, only `Caption`, `id`"),
        ("a.json", '["a ring", {}]', "entry 2 has no `prompt`, only nothing"),
        ("a.json", '["a ring", 3]', "entry 2 has no `prompt`: write a text"),
        ("a.json", '{"prompts": ["a ring"]}', "is no list but an object with `prompts`: write a list"),
        ("a.json", '["a ring",\n', "is not JSON .*line 2"),
        ("a.json", "[" * 10**5, "is not JSON .*recursion"),
        ("a.jsonl", "[" * 10**5, "line 1 is not JSON .*recursion"),
        ("a.jsonl", '{"Prompt": "a ring", "prompts": "a"}', "line 1 has more than one `prompt`, `Prompt`, `prompts`"),
        ("a.csv", "item_id,text\n0,a ring\n", "line 1 has to name one column `prompt`, but has `item_id`, `text`"),
        ("a.csv", "Prompts;Category\na ring;x\n", "but has `Prompts;Category`: .*with a comma between two columns"),
        ("a.csv", "Prompt,prompts\na,b\n", "one column `prompt`, but has `Prompt`, `prompts`"),
        ("a.csv", 'prompt,x\n"a\nring",y\na ring, big,y\n', "line 4 has 3 fields for 2 columns: .* that holds a comma"),
        ("a.csv", "prompt,x\na ring\n", "line 2 has 1 fields for 2 columns"),
        ("a.csv", 'prompt\na ring\n"a" ring\n', "line 3 is no row of a table"),
        ("a.csv", "prompt,x\n,y\n", "line 2: `prompt` is ''"),
        ("a.tsv", "prompt\tx\na ring\n", "line 2 has 1 fields for 2 columns: .* that holds a tab"),
    ],
)
def test_a_file_of_others_says_what_it_has(tmp_path: Path, name: str, text: str, says: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"^{tmp_path / name}.*{says}") as caught:
        load_prompts(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("a.jsonl", '{"prompt": "a ring"}\n{"prompt": "a ring \\ud83d"}\n', "line 2"),
        ("a.jsonl", '{"prompt": "a ring", "tags": [{"\\ud83d": 1}]}\n', "line 1"),
        ("a.json", '["a ring", "\\ud83d"]', "entry 2"),
    ],
)
def test_half_a_character_is_refused_with_its_place(tmp_path: Path, name: str, text: str, place: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"^{tmp_path / name}, {place} holds half of a character \(\\ud83d\)"):
        load_prompts(str(tmp_path / name))
    (tmp_path / name).write_text(text.replace("ud83d", "ud83d\\ude00"))  # both halves
    assert load_prompts(str(tmp_path / name))


def test_a_prompt_knows_where_it_was_read(tmp_path: Path):
    for name, text, place in (("a.txt", "\na ring", "line 2"), ("a.json", '["a ring"]', "entry 1")):
        (tmp_path / name).write_text(text)
        assert [prompt.origin for prompt in load_prompts(str(tmp_path / name))] == [f"{tmp_path / name}, {place}"]


def test_what_names_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("plain").write_text("a ring\n")
    Path("folder/inside").mkdir(parents=True)
    for words in (
        "shapes:heldout",
        "hps/photo",
        "absent.csv",
        "X.JSONL",
        "a.tsv",
        "a.parquet",
        "plain",
        "folder/inside",
    ):
        assert names_prompts(words)
    for words in ("", "a ring", "folder", "a red/blue ring", "dr. who", "x" * 5000, "a\0b"):
        assert not names_prompts(words)


def test_the_digest_is_of_texts_and_metadata_in_their_order():
    ring, cross = Prompt("a ring", {"tag": "x"}, "a.txt, line 1"), Prompt("a cross")
    found = prompts_digest([ring, cross])
    # As it stands in the settings of evaluations that were made before this function was here.
    assert found == hashlib.sha256(b'[["a ring", {"tag": "x"}], ["a cross", {}]]').hexdigest()
    assert found == prompts_digest([Prompt("a ring", {"tag": "x"}), cross])
    assert found not in (prompts_digest([cross, ring]), prompts_digest([Prompt("a ring"), cross]))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no prompts"),
        ("\n \n", "holds no prompts"),
        ('{"prompt": "a"}\n{"prompt": \n', "line 2 is not JSON"),
        ('{"prompt": "a"}\n\n{"text": "b"}\n', "line 3 has no `prompt`"),
        ('["a"]\n', "line 1 has no `prompt`: write a text"),
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
    (tmp_path / "latin.txt").write_bytes(b"a ring\nca\xe9\n")
    (tmp_path / "folder.txt").mkdir()
    for source, says in (
        (tmp_path / "absent.jsonl", "cannot read"),
        (tmp_path / "folder.txt", "is a folder: give one file of prompts"),
        (tmp_path, "is a folder: give one file of prompts"),
        (tmp_path / "latin.txt", "latin.txt, line 2 is not UTF-8 .* byte 9"),
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
