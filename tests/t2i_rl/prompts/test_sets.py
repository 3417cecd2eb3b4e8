"""Prompt sets: downloads that fail leave nothing, checksums are compared, files that are missing name the command."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rewards.errors import RewardError
from rewards.files import pins
from t2i_rl.cli import main
from t2i_rl.commands.data import TRAINING
from t2i_rl.errors import UserError
from t2i_rl.prompts import download as prompt_download
from t2i_rl.prompts import geneval as geneval_prompts
from t2i_rl.prompts import sets as prompt_sets
from t2i_rl.prompts.download import get
from t2i_rl.prompts.geneval import benchmark, lines
from t2i_rl.prompts.reading import load_prompts
from t2i_rl.prompts.sets import SETS, place, prompt_file

HPS = {f"/{style}.json": json.dumps([f"{style} cat", f"{style} dog"]).encode() for style in prompt_sets.HPS_STYLES}


class Site:
    """A web site in this process: files by path, and ways to fail."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut = False  # every body ends before its announced length
        self.stall = threading.Event()  # until set, a body in two halves waits between them
        self.stall.set()
        self.asked: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                if self.path not in site.files:
                    self.send_error(404)
                    return
                body = site.files[self.path]
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                site.stall.wait()
                if not site.cut:
                    self.wfile.write(body[len(body) // 2 :])

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    threading.Thread(target=site.server.serve_forever, args=(0.01,), daemon=True).start()
    yield site
    site.stall.set()
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("T2I_RL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path):
    assert pins.cache_folder() == cache
    monkeypatch.delenv("T2I_RL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert pins.cache_folder() == tmp_path / "xdg" / "t2i-rl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place("geneval-train") == tmp_path / ".cache" / "t2i-rl" / "prompts" / "geneval-train.jsonl"


def test_the_benchmark_downloaded_is_the_benchmark_made(site: Site):
    site.files["/evaluation_metadata.jsonl"] = "".join(lines(benchmark())).encode()
    (path,) = get("geneval", site.address + "/").values()
    assert path == prompt_file("geneval") and path.read_bytes() == site.files["/evaluation_metadata.jsonl"]
    get("geneval", site.address)
    assert len(site.asked) == 1
    before = path.read_bytes()
    path.unlink()
    assert main(["data", "make", "geneval"]) == 0 and path.read_bytes() == before


def test_bytes_other_than_ours_are_refused(site: Site, cache: Path):
    site.files["/evaluation_metadata.jsonl"] = b'{"prompt": "a photo of a cat"}\n'
    with pytest.raises(UserError, match="does not hold the prompts geneval as we know them"):
        get("geneval", site.address)
    assert not files_in(cache)


def test_bytes_are_recorded_at_the_first_download_and_compared_from_then_on(site: Site):
    site.files = dict(HPS)
    assert prompt_sets.pinned("hps/anime") == "unpinned"
    anime = get("hps", site.address)["hps/anime"]
    assert prompt_sets.pinned("hps/anime") == f"recorded {pins.sha256(anime)[:8]}"
    anime.unlink()
    site.files["/anime.json"] = b'["another cat"]'
    with pytest.raises(RewardError, match=r"anime\.json is not the file that was first used"):
        get("hps", site.address)
    assert not anime.exists()
    site.files = dict(HPS)
    get("hps", site.address)
    anime.write_text('["a changed cat"]')
    for again in (lambda: prompt_file("hps/anime"), lambda: get("hps", site.address)):
        with pytest.raises(RewardError, match="restore it"):
            again()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (None, r"paintings.json \(HTTP 404\)"),
        (b"<html>", "paintings.json is not JSON"),
        (b'{"prompt": "a cat"}', "is no list but an object with `prompt`"),
        (b"[]", "holds no prompts"),
        (b'["a cat", 3]', "entry 2 has no `prompt`"),
        (b'["a \xff"]', "is not UTF-8"),
        (b'["' + b"a" * 5000 + b'"]', "larger than 4,096 bytes"),
    ],
)
def test_one_bad_file_leaves_nothing_of_the_set(
    site: Site, cache: Path, body: bytes | None, says: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prompt_download, "MOST_BYTES", 4096)
    site.files = {path: held for path, held in HPS.items() if path != "/paintings.json"}
    if body is not None:
        site.files["/paintings.json"] = body
    with pytest.raises(UserError, match=says) as caught:
        get("hps", site.address)
    assert "paintings.json" in str(caught.value) and "\n" not in str(caught.value)
    assert not files_in(cache)


def test_a_body_that_is_cut_short_leaves_nothing(site: Site, cache: Path):
    site.files, site.cut = dict(HPS), True
    with pytest.raises(UserError, match=r"cannot download .*anime\.json"):
        get("hps", site.address)
    assert not files_in(cache)


def test_a_server_that_stops_speaking_is_given_up(site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prompt_download, "PATIENCE", 0.2)
    site.files = dict(HPS)
    site.stall.clear()
    with pytest.raises(UserError, match="timed out"):
        get("hps", site.address)
    assert not files_in(cache)


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "ftp://example.org", "nowhere", "http://["])
def test_an_address_where_nothing_is(address: str, cache: Path):
    with pytest.raises(UserError, match="cannot download"):
        get("hps", address)
    assert not files_in(cache)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "socks4://127.0.0.1:9"])
def test_a_proxy_that_cannot_be_used(proxy: str, cache: Path, monkeypatch: pytest.MonkeyPatch):
    """What is not installed for it, and what is not known, are no HTTP errors."""
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(UserError, match="check the connection, the proxy and the address"):
        get("geneval", "http://example.invalid")
    assert not files_in(cache)


def test_a_download_that_is_killed_leaves_nothing(site: Site, cache: Path):
    site.files = dict(HPS)
    site.stall.clear()
    words = ["data", "get", "hps", "--address", site.address]
    child = subprocess.Popen([sys.executable, "-c", f"from t2i_rl.cli import main; main({words!r})"])
    while not site.asked:
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert not files_in(cache)


def test_making_that_is_killed_leaves_no_set(cache: Path):
    words = ["data", "make", "geneval-train", "--n", "5000000"]
    child = subprocess.Popen(
        [sys.executable, "-c", f"from t2i_rl.cli import main; main({words!r})"], stdout=subprocess.DEVNULL
    )
    while not list(cache.rglob("*.part")):
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    with pytest.raises(UserError, match="run t2i-rl data make geneval-train"):
        prompt_file("geneval-train")


def test_making_that_is_stopped_leaves_nothing_and_an_older_set_whole(cache: Path, monkeypatch: pytest.MonkeyPatch):
    assert main(["data", "make", "geneval-train", "--n", "20"]) == 0
    path = prompt_file("geneval-train")
    before = path.read_bytes()

    def stopped(records):
        yield next(lines(records))
        raise KeyboardInterrupt

    monkeypatch.setattr(geneval_prompts, "lines", stopped)
    assert main(["data", "make", "geneval-train", "--n", "30"]) == 130
    assert files_in(cache) == [path] and path.read_bytes() == before


@pytest.mark.parametrize("name", [*TRAINING])
def test_what_is_made_can_be_trained_on(name: str, tmp_path: Path):
    out = tmp_path / "deep" / "own.jsonl"
    assert main(["data", "make", name, "--n", "40", "--seed", "5", "--out", str(out)]) == 0
    assert main(["data", "make", name, "--n", "40", "--seed", "5"]) == 0
    assert prompt_file(name).read_bytes() == out.read_bytes()
    assert len(load_prompts(str(out))) == 40


def test_t2i_r1_without_t2i_compbench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    texts = {"color": "a green bench and a blue bowl\r\n", "complex": "The red hat was on top of the rack.\r\n"}
    for name in prompt_sets.COMPBENCH:
        text = texts.get(name, "another prompt\n").encode()
        (tmp_path / f"{name}.txt").write_bytes(text)
    prompts = ["A green bench and a blue bowl", "the red hat was on top of the rack", "the red hat"]
    (tmp_path / "t2i-r1.json").write_text(json.dumps([{"prompt": text, "nouns": ["x"]} for text in prompts]))
    monkeypatch.setattr(prompt_sets, "prompt_file", lambda name: tmp_path / place(name).name)
    out = tmp_path / "out.jsonl"
    assert main(["data", "make", "t2i-r1-train", "--out", str(out)]) == 0
    assert [prompt.metadata for prompt in load_prompts(str(out))] == [{"prompt": "the red hat", "nouns": ["x"]}]


def test_t2i_r1_is_parted_by_the_text_of_a_prompt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in prompt_sets.COMPBENCH:
        (tmp_path / f"{name}.txt").write_text("another prompt\n")
    prompts = [f"{number} red hats" for number in range(300)]
    again = [prompt.upper() + "." for prompt in prompts]
    (tmp_path / "t2i-r1.json").write_text(json.dumps([{"prompt": text} for text in prompts + again]))
    monkeypatch.setattr(prompt_sets, "prompt_file", lambda name: tmp_path / place(name).name)
    parts = []
    for name in ("t2i-r1-train", "t2i-r1-heldout"):
        assert main(["data", "make", name, "--out", str(tmp_path / f"{name}.jsonl")]) == 0
        parts.append([prompt.text.lower().rstrip(".") for prompt in load_prompts(str(tmp_path / f"{name}.jsonl"))])
    assert sorted(parts[0] + parts[1]) == sorted(prompts * 2)
    assert not {*parts[0]} & {*parts[1]} and len({*parts[1]}) == 12


def test_virl39k_is_parted_by_its_pictures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("T2I_RL_CACHE", str(tmp_path))
    assert main(["data", "make", "virl39k-train"]) == 2
    assert "run t2i-rl data make virl39k\n" in capsys.readouterr().err
    shown = [[f"virl39k/{number}.png"] for number in range(400)] + [[]] * 400
    rows = [
        {"prompt": f"<image>{ask} {number}" if images else f"{ask} {number}", "images": images, "answer": "1"}
        for ask in ("How many?", "Which?")
        for number, images in enumerate(shown)
    ]
    place("virl39k").parent.mkdir(parents=True)
    place("virl39k").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    parts = []
    for name in ("virl39k-train", "virl39k-heldout"):
        assert main(["data", "make", name]) == 0
        parts.append([prompt.metadata for prompt in load_prompts(name)])
        assert main(["data", "make", name, "--out", "other.jsonl"]) == 2
    told = [[json.dumps(row, sort_keys=True) for row in part] for part in parts]
    assert sorted(told[0] + told[1]) == sorted(json.dumps(row, sort_keys=True) for row in rows)
    pictures = [{image for row in part for image in row["images"]} for part in parts]
    assert pictures[0] | pictures[1] == {f"virl39k/{number}.png" for number in range(400)}
    assert not pictures[0] & pictures[1] and 20 < len(parts[1]) < 70


def test_a_set_that_is_missing_names_the_command():
    for name, says in (
        ("geneval", "run t2i-rl data make geneval$"),
        ("hps/photo", "run t2i-rl data get hps$"),
        ("drawbench", "run t2i-rl data get drawbench --address URL$"),
        ("hps", r"names no single prompt file \(hps/anime, "),
        ("beauty", "t2i-rl data list shows the names"),
    ):
        with pytest.raises(UserError, match=says):
            prompt_file(name)


def test_every_pin_is_a_checksum_and_every_set_can_be_had():
    for known in SETS.values():
        for source in known.files.values():
            assert source.sha256 is None or (len(source.sha256) == 64 and int(source.sha256, 16))
            assert known.made or known.address or source.sha256  # without an address, only what we can recognise


def test_the_page_names_every_set():
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    assert all(f"`{name}" in page for name in SETS)


def test_the_list_says_what_is_here(capsys: pytest.CaptureFixture[str]):
    assert main(["data", "make", "geneval-unseen", "--n", "5"]) == 0
    capsys.readouterr()
    assert main(["data", "list"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert rows["geneval-unseen"].endswith(str(place("geneval-unseen")))
    assert rows["geneval"].endswith("pinned 5c48e081  not here: t2i-rl data make geneval")
    assert rows["hps/photo"].endswith("unpinned  not here: t2i-rl data get hps")
    assert {*prompt_sets.NAMES} <= {*rows}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "nothing is asked for"),
        ("fly", "there is no data command 'fly'"),
        ("make", "missing: NAME (see t2i-rl data make --help)"),
        ("make beauty", "there is no prompt set 'beauty': choose one of geneval, "),
        ("make hps", "hps is not made but downloaded"),
        ("get geneval-train", "geneval-train is not downloaded but made"),
        ("get drawbench", "we know no address of drawbench"),
        ("make geneval --n 5", "geneval has a fixed size"),
        ("make geneval-train --n 0", "n is 0: it has to be in 1..10000000"),
        ("make geneval-train --seed -1", "seed is -1: it has to be 0 or more"),
        ("make geneval-train --n 5 --out .", ". is a folder: name a file"),
        ("make t2i-r1-train", "t2i-compbench/color are not here yet: run t2i-rl data get t2i-compbench"),
        ("list all", "takes nothing: leave out all"),
    ],
)
def test_one_sentence_and_exit_code_2(words: str, says: str, capsys: pytest.CaptureFixture[str], cache: Path):
    assert main(["data", *words.split()]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1
    assert not files_in(cache)


def test_neither_help_nor_work_imports_torch(tmp_path: Path):
    child = """
import sys
from t2i_rl.cli import main
for words in ("data --help", "data make --help", "data make geneval-train --n 5", "data list", "data get drawbench"):
    try:
        main(words.split())
    except SystemExit:
        pass
    assert not {"torch", "transformers"} & sys.modules.keys(), words
"""
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
