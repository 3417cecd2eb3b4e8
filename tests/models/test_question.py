"""What a model is asked: keys tell questions apart, and models that read text alone say so."""

import numpy as np
import pytest

from models.errors import ModelError
from models.policy import Policy
from models.question import Question, question
from models.registry import load
from tests.models.families import FAMILIES, save_family

BLACK = np.zeros((2, 3, 3), np.uint8)


def test_keys():
    assert Question("a ring").key == question("a ring").key == "a ring"
    asked = [
        Question("<image> ?", (BLACK,)),
        Question("<image> ?", (BLACK + 1,)),
        Question("<image> ?", (BLACK.reshape(3, 2, 3),)),
        Question("<image> ?", (BLACK, BLACK)),
        Question("<image> !", (BLACK,)),
    ]
    assert len({one.key for one in asked}) == len(asked)
    assert Question("<image> ?", (BLACK.copy(),)).key == asked[0].key


@pytest.fixture(params=FAMILIES)
def policy(request: pytest.FixtureRequest, tmp_path, monkeypatch: pytest.MonkeyPatch) -> Policy:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return load(str(save_family(request.param, tmp_path / "model")))


def test_a_question_without_pictures_is_its_text(policy: Policy):
    for plain, asked in ((["two rings"], None), (["two rings"], ["a ring"])):
        one = policy.encode(plain, asked)
        other = policy.encode([Question(text) for text in plain], asked and [Question(text) for text in asked])
        assert one.prompts == other.prompts == ("two rings",)
        assert all((one.tensors[name] == other.tensors[name]).all() for name in one.tensors)


def test_pictures_are_refused_where_they_are_not_read(policy: Policy):
    seen = Question("<image> a ring", (BLACK,))
    for prompts, negatives in (([seen], None), (["a ring"], [seen])):
        with pytest.raises(ModelError, match=r"'<image> a ring' has 1 picture\(s\), but this model reads text alone"):
            policy.encode(prompts, negatives)
