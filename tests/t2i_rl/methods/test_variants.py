"""Variants of a method: what their names can say, and what is refused."""

import dataclasses
import json
import subprocess
import sys

import pytest

from t2i_rl.cli import main
from t2i_rl.commands.train import resolve
from t2i_rl.configuration.config import TrainConfig, to_json
from t2i_rl.errors import UserError
from t2i_rl.methods.advantages import LeaveOneOut
from t2i_rl.methods.catalogue import METHODS, find_method
from t2i_rl.methods.credit.critical import DynamicWeight
from t2i_rl.methods.credit.entropy import RandomTokens
from t2i_rl.methods.method import Method
from t2i_rl.methods.surrogates import Cispo, Clipped
from t2i_rl.methods.variants import base_name
from t2i_rl.settings import override


def changed(base: str, part: str, **settings: object) -> Method:
    """The registered method with fields of one of its parts replaced."""
    method = METHODS[base]
    return dataclasses.replace(method, **{part: dataclasses.replace(getattr(method, part), **settings)})


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cfg[credit.statistic=k3]", changed("cfg", "credit", statistic="k3")),
        (
            "cfg-released[ credit.top = 3e-1 , credit.kl-reweight=false ]",
            changed("cfg-released", "credit", top=0.3, kl_reweight=False),
        ),
        ("critical[credit.local_mean=false]", changed("critical", "credit", local_mean=False)),
        ("critical[credit.parts=similarity+initial]", changed("critical", "credit", parts=("similarity", "initial"))),
        ("critical[credit.ratio=1.5+1+0.5]", changed("critical", "credit", ratio=(1.5, 1.0, 0.5))),
        ("mixgrpo[credit.size=2]", changed("mixgrpo", "credit", size=2)),
        ("critical[dynamic=none]", dataclasses.replace(METHODS["critical"], dynamic=None)),
        ("cfg[scale=none]", dataclasses.replace(METHODS["cfg"], scale="none")),
        ("cfg[scale=rloo]", dataclasses.replace(METHODS["cfg"], scale=LeaveOneOut())),
        ("critical[credit=random]", dataclasses.replace(METHODS["critical"], credit=RandomTokens())),
        ("grpo[dynamic=critical]", dataclasses.replace(METHODS["grpo"], dynamic=DynamicWeight())),
        ("grpo[dynamic.clip=1,dynamic=critical]", dataclasses.replace(METHODS["grpo"], dynamic=DynamicWeight(1.0))),
        ("cispo[objective.surrogate.low=0.2]", changed("cispo", "objective", surrogate=Cispo(low=0.2))),
        ("cispo[objective.surrogate.low=none]", METHODS["cispo"]),
        ("grpo[objective.surrogate=dapo]", changed("grpo", "objective", surrogate=Clipped(0.2, 0.28))),
        # Neither of the two would be accepted without the other.
        ("gspo[objective.beta=0.1,objective.kl=k1]", changed("gspo", "objective", beta=0.1, kl="k1")),
    ],
)
def test_settings_are_replaced_and_the_text_is_the_name(name: str, wanted: Method) -> None:
    found = find_method(name)
    assert found.name == name
    assert dataclasses.replace(found, name=wanted.name, summary=wanted.summary) == wanted
    assert base_name(name) in METHODS


REFUSED = [
    ("gcpo[credit.top=1]", "there is no method 'gcpo': did you mean vgpo? choose one of grpo"),
    ("cfg[", "has to end with its settings in brackets"),
    ("cfg[credit.top=0.3]x", "has to end with its settings in brackets"),
    ("cfg[]", "has the setting '': write it as PATH=VALUE"),
    ("cfg[credit.top]", "has the setting 'credit.top': write it as PATH=VALUE"),
    ("cfg[credit.top=0.3,credit.top=0.2]", "sets credit.top twice"),
    ("cfg[beta=1]", "has no setting beta: it (Method) has scale, credit, objective, dynamic"),
    ("cfg[name=x]", "has no setting name"),
    ("cfg[credit.share=1]", "has no setting credit.share: credit (GuidanceContrast) has statistic, normalize"),
    ("cfg[credit.top=a]", "sets credit.top to 'a': it has to be a number"),
    ("cfg[credit.top=nan]", "sets credit.top to 'nan': it has to be a number"),
    ("mixgrpo[credit.size=1.5]", "sets credit.size to '1.5': it has to be a whole number"),
    ("cfg[credit.kl_reweight=1]", "it has to be true or false"),
    ("cfg[credit.statistic=kl]", "it has to be one of kl_exact, k3, ig, abs, js"),
    ("critical[credit.parts=edges]", "it has to be some values joined by +, each one of initial, structure"),
    ("critical[credit.ratio=1+2]", "it has to be 3 values joined by +, each a number"),
    ("cispo[objective.surrogate.low=x]", "it has to be a number, or none"),
    ("cfg[scale=std]", "it has to be one of group, batch, none, or the name of a method whose part is taken"),
    ("critical[credit=initial]", "it has to be the name of a method whose part is taken"),
    ("cfg[dynamic.clip=1]", "sets dynamic.clip, but dynamic is None here, which has no settings"),
    ("cfg[credit.statistic.exact=1]", "credit.statistic is kl_exact here, which has no settings"),
    ("cfg[credit.top=0.9]", "top 0.9 and mass 0.8 must be 0 < top <= mass < 1"),
    ("critical[credit.share=0.5]", "the share 0.5"),
    # Without effect, or with a gradient that is 0 for ever.
    ("critical[dynamic.form=linear]", "detached it never moves them apart: set dynamic.detach to false, as critical-l"),
    ("critical-literal[dynamic.detach=true]", "a linear running weight is 0 while policy and reference agree"),
    ("cfg[credit.top=0.3]", "top 0.3 has no effect on weights of the kind percentile: set normalize to power or topk"),
    ("cfg[credit.normalize=topk,credit.mass=0.9]", "mass 0.9 has no effect on weights of the kind topk"),
    ("cfg[credit.temperature=0.5]", "set normalize to softmax"),
    ("cfg[credit.normalize=minmax,credit.ties=stable]", "ties stable has no effect"),
    ("cfg[credit.normalize=none,credit.statistic=k3]", "statistic k3 has no effect on weights of the kind none"),
    ("critical[credit.parts=initial,credit.local_mean=false]", "local_mean is of structure tokens"),
    ("critical[credit.local_mean=false,credit.neighbours=box]", "neighbours are those of the local mean"),
    ("stage[entropy_reward.coefficient=0]", "a coefficient of 0 has no effect: set entropy_reward to none"),
    ("vgpo[scale.factor=0]", "the factor 0.0 of the reward's level must be positive"),
    ("critical[credit.ratio=7+3+1]", "do not fit into the image"),
    ("cfg-released[dynamic=critical]", "choose another denominator"),
]


@pytest.mark.parametrize(("name", "says"), REFUSED)
def test_what_is_refused(name: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        find_method(name)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_keeps_its_variant() -> None:
    name = "cfg[credit.statistic=k3]"
    config = resolve(["--model", "tiny", "--reward", "shapes", "--method", name])
    plain = resolve(["--model", "tiny", "--reward", "shapes", "--method", "cfg"])
    assert config == dataclasses.replace(plain, method=name)  # of the same preset
    written = override(TrainConfig(), json.loads(to_json(config)), "config.json")
    assert find_method(written.method) == find_method(name)


def test_the_command_line_describes_a_variant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "cfg[credit.statistic=k3]"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("cfg[credit.statistic=k3]: cfg with credit.statistic = k3\n")
    assert "GuidanceContrast(statistic='k3'" in text and "logp_cond, logp_uncond" in text
    assert main(["methods", "cfg[credit.statistic=k4]"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_variant_does_not_import_torch() -> None:
    program = (
        "import sys; from t2i_rl.methods.catalogue import find_method;"
        "find_method('gspo[credit=cfg-released,credit.top=0.3]'); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
