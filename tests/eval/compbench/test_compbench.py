"""T2I-CompBench: what models answer, what is read out of prompts, and the bugs that can be mended."""

import base64
import io
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from transformers import AutoTokenizer, BlipForQuestionAnswering

from eval.compbench import language
from eval.compbench.attributes import as_asked, attribute_score, questions
from eval.compbench.blip import Blip
from eval.compbench.boxes import Labelled, detector_size
from eval.compbench.depth import Dpt
from eval.compbench.numeracy import counted, distinct, numeracy_score, read_nouns
from eval.compbench.owlv2 import Owlv2
from eval.compbench.scorers import ComplexPlaneScorer, NumeracyScorer, PlaneScorer
from eval.compbench.served import ServedDetector
from eval.compbench.spatial import depth_score, mean_depth, plane_score, quantised
from eval.compbench.three_in_one import three_in_one
from eval.compbench.unidet import create_app
from rewards.errors import RewardError
from rewards.http.token import VARIABLE as TOKEN_VARIABLE
from t2i_rl.errors import UserError
from t2i_rl.prompts.prompt import Prompt
from tests.eval.tiny_models import Plain, save_blip, save_dpt, save_owlv2


def picture(seed: int = 0, height: int = 40, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def box(label: str, *sides: float, score: float = 0.8) -> Labelled:
    return Labelled(label, np.array(sides, dtype=np.float32), score)


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blip(tmp_path_factory.mktemp("models") / "blip")


def test_blip_answers_what_its_first_word_says(blip: Path):
    model, asked = Blip.load(blip), ["a red bench?", "the green bowl?"]
    answers = model.answers(picture(), asked)
    assert len({*answers, *model.answers(picture(1), asked)}) > 1 and all(0 < answer < 1 for answer in answers)
    assert model.answers(picture(), asked[:1]) == pytest.approx(answers[:1], abs=1e-4)  # padding changes nothing
    # The same by transformers' own generation, which begins with the same token.
    whole, tokenizer = BlipForQuestionAnswering.from_pretrained(blip).eval(), AutoTokenizer.from_pretrained(blip)
    inputs = tokenizer([as_asked(asked[0])], return_tensors="pt")
    said = whole.generate(
        pixel_values=model.pixels(picture())[None],
        **{name: inputs[name] for name in ("input_ids", "attention_mask")},
        interpolate_pos_encoding=True,
        max_new_tokens=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    yes, no = (said.logits[0][0, tokenizer.convert_tokens_to_ids(word)] for word in ("yes", "no"))
    assert answers[0] == pytest.approx(torch.sigmoid(yes - no).item(), abs=1e-4)
    assert model.answers(picture(), []) == []


def test_blip_reads_a_square(blip: Path):
    assert Blip.load(blip).pixels(picture()).shape == (3, 480, 480)


@pytest.mark.parametrize("load", [Blip.load, Owlv2.load, Dpt.load])
def test_models_that_are_not_there(load, tmp_path: Path):
    with pytest.raises(RewardError, match="give a folder"):
        load(str(tmp_path / "absent"))


def test_owlv2_looks_for_the_words_of_the_prompt(tmp_path: Path):
    detector = Owlv2.load(save_owlv2(tmp_path / "owlv2"))
    detector.lowest = 0.0
    found, none = detector.detect([picture(), picture()], [["cat", "dog"], []])
    assert none == [] and {one.label for one in found} <= {"cat", "dog"} and found
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    sides = np.stack([one.box for one in found])
    assert (sides >= 0).all() and (sides[:, [0, 2]] <= 64).all() and (sides[:, [1, 3]] <= 40).all()
    assert "not comparable" in detector.name


def test_depth_has_the_size_of_the_picture(tmp_path: Path):
    depth = Dpt.load(save_dpt(tmp_path / "dpt")).map(picture())
    assert depth.shape == (40, 64) and depth.min() == 0 and depth.max() == 1
    np.testing.assert_allclose(depth * 255, np.rint(depth * 255), atol=1e-4)


def test_a_flat_depth_is_nowhere_near():
    assert quantised(np.full((2, 3), 7.0)).tolist() == [[0] * 3] * 2


class Boxes:
    """A detector that finds what it was told, whatever it sees."""

    name, vocabulary = "boxes", None

    def __init__(self, *found: Labelled) -> None:
        self.found = list(found)
        self.asked: list[list[str]] = []

    def detect(self, images, words):
        assert all(max(image.shape) <= 480 for image in images)
        self.asked += [list(each) for each in words]
        return [self.found for _ in images]


def test_places_ask_for_the_first_and_the_last_noun():
    detector = Boxes(box("cat", 0, 0, 10, 10), box("dog", 300, 0, 310, 10))
    scorer = PlaneScorer(detector, Plain(), fixed=False)
    [judged] = scorer.score([picture()], [Prompt("a cat on the left of a dog")])
    assert judged.values["total"] == pytest.approx(0.25 * 1.6 + 0.5) and detector.asked == [["cat", "dog"]]
    with pytest.raises(RewardError, match='no noun in "nothing"'):
        scorer.check([Prompt("nothing")])


@pytest.mark.parametrize(
    ("prompt", "sides"),
    [
        ("The red cat is on top of the green bowl", ("cat", "bowl")),
        ("The dog and the cat are next to a cup and a bowl.", ("cat", "cup")),
        ("The cat near it", None),
        ("The cat holds a bowl", None),
    ],
)
def test_the_sides_of_a_complex_prompt(prompt: str, sides):
    assert ComplexPlaneScorer(Boxes(), Plain(), fixed=False).sides(prompt) == sides


def test_on_top_of_counts_only_when_mended():
    found = [box("cat", 0, 0, 10, 10), box("dog", 0, 300, 10, 310)]
    prompt, nouns = "a cat on top of a dog", ("cat", "dog")
    assert plane_score(prompt, nouns, found) == 0  # 0.4 is under a half
    assert plane_score(prompt, nouns, found, fixed=True) == pytest.approx(0.9)


def test_depth_is_read_at_rows_and_columns_only_when_mended():
    depth = np.zeros((20, 40), dtype=np.float32)
    depth[2:6, 10:18] = 1
    here = np.array([10, 2, 18, 6])
    assert mean_depth(depth, here, fixed=True) == 1 and mean_depth(depth, here) == 0
    assert np.isnan(mean_depth(depth, np.array([30, 2, 38, 6])))
    near, far = box("cat", 10, 2, 18, 6), box("dog", 10, 3, 18, 7)
    score = [
        depth_score("a cat in front of a dog", ("cat", "dog"), [near, far], depth, fixed) for fixed in (False, True)
    ]
    assert score == pytest.approx([0.4, 0.9])


@pytest.mark.parametrize(
    ("labels", "chosen", "holds"),
    [
        ("", "", 0),
        ("phone", "0", 0),
        ("phone,phone", "0", 0),  # one object found: its first detection
        ("cup,phone,a phone", "1", 0),
        ("person,tall person", "0", 0),
        ("phone,phone,person", "12", 0),  # both found: the last ones until then ...
        ("phone,phone,person,phone", "12", 0),  # ... and no later ones
        ("person,person,a phone,phone", "12", 0),
        ("phone,person", "01", 1),
    ],
)
def test_an_object_in_depth_found_several_times(labels: str, chosen: str, holds: int):
    """All detections but the very first have one box: what an object's confidence is does not depend on boxes."""
    found = [
        box(label, *((2, 0, 12, 10) if place == 0 else (0, 0, 10, 10)), score=0.5 + place / 10)
        for place, label in enumerate(filter(None, labels.split(",")))
    ]
    depth = np.zeros((12, 12), dtype=np.float32)
    depth[:2] = 1  # exchanged: columns
    score = depth_score("a girl in front of a phone", ("girl", "phone"), found, depth)
    assert score == pytest.approx(sum(0.25 * found[int(row)].score for row in chosen) + 0.5 * holds)


NOUNS = {"cat": "cat", "cats": "cat", "teddy bear": "teddy bear", "boys": "boy"}


def test_what_is_counted():
    assert counted(["two", "cats", "and", "a", "teddy", "bear", ",", "three", "boys"], NOUNS) == [
        ("cat", 2),
        ("teddy bear", 1),
        ("person", 3),
    ]
    with pytest.raises(ValueError, match="no number"):
        numeracy_score([], [])
    with pytest.raises(RewardError, match="names no number of objects"):
        NumeracyScorer(Boxes(), Plain(), NOUNS).check([Prompt("some fog")])


def test_one_object_counts_once():
    found = [box("cat", 0, 0, 99, 99), box("cat", 0, 0, 99, 98), box("cat", 5, 5, 20, 20), box("cat", 200, 0, 250, 9)]
    assert len(distinct(found)) == 2
    assert numeracy_score([("cat", 2)], found) == 1 and numeracy_score([("cat", 3)], found) == 0.5
    assert numeracy_score([("house", 1)], [box("doghouse", 0, 0, 9, 9)], {"doghouse"}) == 1
    assert numeracy_score([("house", 1)], [box("doghouse", 0, 0, 9, 9)], {"doghouse", "house"}) == 0


def test_a_broken_table_of_nouns(tmp_path: Path):
    (tmp_path / "nouns.txt").write_text("cup - cups\ncake\n")
    with pytest.raises(UserError, match=r"nouns\.txt, line 2"):
        read_nouns(tmp_path / "nouns.txt")


def test_questions():
    assert questions(["a cat", "the left", *"abcdefghij"]) == [f"{one}?" for one in ("a cat", *"abcdefg")]
    assert as_asked('A "Cat" (red)?') == "a cat red?"
    assert attribute_score([]) == 1 and attribute_score([0.5, 0.3333]) == 0.1666


def test_three_in_one_is_about_what_the_prompt_is_about():
    scores = {"attribute": 0.2, "place": 0.4, "action": 0.9, "spatial": ["a"], "actions": ["b"]}
    assert [three_in_one(prompt, **scores) for prompt in ("A.", "b", "c")] == pytest.approx([0.3, 0.55, 0.5])


@pytest.mark.parametrize(
    ("size", "expected"), [((512, 512), (479, 479)), ((100, 200), (240, 480)), ((600, 400), (480, 320))]
)
def test_the_size_that_the_detector_sees(size, expected):
    assert detector_size(*size) == expected


class Colours:
    """A detector to be served: one object, whose confidence is the mean red."""

    name, labels = "colours", ["cat", "dog"]

    def detect(self, image):
        return [Labelled("dog", np.array([1.0, 2, 3, 4]), float(image[..., 0].mean() / 255))]


def transport(token: bytes | None = None) -> httpx.BaseTransport:
    client = TestClient(create_app(Colours(), token), raise_server_exceptions=False)
    return httpx.MockTransport(
        lambda request: httpx.Response(
            (
                reply := client.request(
                    request.method, request.url.path, content=request.content, headers=request.headers
                )
            ).status_code,
            content=reply.content,
        )
    )


def test_a_served_detector_is_the_detector(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")  # not between us and our detector
    served = ServedDetector("http://there", transport())
    assert (served.name, served.vocabulary) == ("colours", {"cat", "dog"})
    images = [picture(seed) for seed in range(18)]  # more than one request holds
    found = served.detect(images, [[]] * 18)
    assert [one.score for [one] in found] == pytest.approx([image[..., 0].mean() / 255 for image in images])
    assert found[0][0].label == "dog" and found[0][0].box.tolist() == [1, 2, 3, 4]


def test_a_served_detector_wants_its_token(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(RewardError, match="401"):
        ServedDetector("http://there", transport(b"secret"))
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    assert ServedDetector("http://there", transport(b"secret")).name == "colours"


def test_what_is_no_picture_is_refused():
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, format="JPEG")
    client = TestClient(create_app(Colours(), None))
    for text in ("???", base64.b64encode(file.getvalue()).decode()):
        assert client.post("/detect", json={"images": [text]}).status_code == 422


def test_a_detector_that_is_not_there():
    with pytest.raises(RewardError, match=r"http://127\.0\.0\.1:9 gives no answer"):
        ServedDetector("http://127.0.0.1:9")


def test_spacy_is_missed_in_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(RewardError, match="spaCy, which is not here: run pip install spacy"):
        language.load_language()
