"""Published figures stand only beside figures of the same prompts, images of each and judges."""

from typing import Any

import pytest

from eval.tables.compare import Finished
from eval.tables.published import COLUMNS, rows_of
from eval.tables.terms import TERMS
from t2i_rl.errors import UserError
from t2i_rl.prompts import geneval
from t2i_rl.prompts.prompt import Prompt, prompts_digest

MATHRULER = "math (mathruler 0.1.0)"
OFFICIAL = "geneval-official (mask2former official 743b7d99)"
MMDET = "geneval-official (mmdet 2.28.2 official 743b7d99)"
UNIDET = "color: BLIP VQA (x, 480 pixels), spaCy; spatial: UniDet R50 0123abcd, spaCy; non_spatial: clipscore (x)"
OWL = "color: BLIP VQA (x, 480 pixels), spaCy; spatial: OWLv2 (x), a substitute for UniDet: not comparable with"


def alike(benchmark: str, more: dict[str, Any] | None = None, /, **scorers: str) -> Finished:
    """A run that is like the published ones but for what is given. scorers: by figure."""
    terms = TERMS[benchmark]
    settings = {
        "benchmark": benchmark,
        "prompts": terms.prompts,
        "prompts_sha256": terms.prompts_sha256,
        "images_per_prompt": terms.images_per_prompt,
        "rules": terms.rules,
    }
    return Finished("a", settings | (more or {}), scorers, {}, {}, {metric: metric for metric in scorers})


def test_geneval_s_own_prompts() -> None:
    own = [Prompt(str(record["prompt"]), record) for record in geneval.benchmark()]
    assert (len(own), prompts_digest(own)) == (TERMS["geneval"].prompts, TERMS["geneval"].prompts_sha256)


def test_every_published_figure_has_its_judge() -> None:
    for benchmark, (metric, _) in (place for places in COLUMNS.values() for place in places):
        assert metric in TERMS[benchmark].judges


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (
            alike("geneval", {"prompts_sha256": "5" * 64}, correct=OFFICIAL),
            r"other prompts \(SHA-256 55555555\.\.\., no",
        ),
        (alike("geneval", {"prompts": 50}, correct=OFFICIAL), "50 prompts instead of 553"),
        (alike("geneval", {"images_per_prompt": 1}, correct=OFFICIAL), "1 instead of 4 images of each"),
        (alike("mm12k", {"images_per_prompt": 1}, accuracy=MATHRULER), "1 instead of 8 answers of each"),
        (
            alike("mm12k", {"rules": {"questions": "table"}}, accuracy=MATHRULER),
            r"other rules \(\{'questions': 'table'\}",
        ),
        (
            alike("mm12k", accuracy="math-verify (math-verify 0.9.0)"),
            r"accuracy by math-verify .* instead of mathruler",
        ),
        (alike("geneval", {"prompts": 9, "images_per_prompt": 1}, correct=OFFICIAL), "9 prompts .* and 1 instead of 4"),
        (alike("geneval", correct="shapes-official (shapes)"), r"correct by shapes-official \(shapes\) instead of"),
        (alike("geneval", correct="geneval-official (fake)"), "correct by"),
        (alike("geneval", correct="geneval-official (mask2former x 01234567, unofficial weights)"), "correct by"),
        (alike("geneval", correct="geneval-partial (mask2former official 743b7d99)"), "correct by"),
        (alike("t2i-compbench", score=OWL), "score by"),
        (alike("t2i-compbench", {"rules": {"fixed": True}}, score=UNIDET), "other rules"),
        (alike("t2i-compbench", {"images_per_prompt": 1}, score=UNIDET), "1 instead of 10"),
        (alike("drawbench", hpsv2="hpsv2.0 (x)"), r"hpsv2 by hpsv2.0 \(x\) instead of HPSv2.1"),
    ],
)
def test_what_measured_something_else_gets_no_published_rows(run: Finished, says: str) -> None:
    metrics = list(run.scorers)
    with pytest.raises(UserError, match=rf"cannot stand beside a, which has .*{says}.*: leave out --published"):
        rows_of([run], metrics)


@pytest.mark.parametrize(
    "run",
    [
        alike("geneval", correct=OFFICIAL),
        alike("geneval", correct=MMDET),
        alike("t2i-compbench", score=UNIDET),
        alike("drawbench", {"images_per_prompt": 2}, hpsv2="hpsv2.1 (x)", deqa="deqa (http://a)"),
        alike("hps", {"prompts_sha256": "unseen"}, hpsv2="hpsv2.1 (x)"),
    ],
)
def test_what_measured_the_same_does(run: Finished) -> None:
    rows = rows_of([run], list(run.scorers))
    assert rows and all(("not known" in row.label) == (row.benchmark == "hps") for row in rows)


def test_every_run_of_a_comparison_is_looked_at() -> None:
    with pytest.raises(UserError, match="1 instead of 4"):
        rows_of(
            [alike("geneval", correct=OFFICIAL), alike("geneval", {"images_per_prompt": 1}, correct=OFFICIAL)],
            ["correct"],
        )
