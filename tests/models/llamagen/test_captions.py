"""What cleaning does to a caption; the expected texts were made with the rules that the models were trained with."""

import pytest

from models.llamagen.captions import clean_caption

CASES = [
    ("a photo of two red apples", "a photo of two red apples"),
    ("A Photo of a CAT", "a photo of a cat"),
    ("a cat & a dog (on a mat)", "a cat a dog on a mat"),
    ('"a quoted caption"', "a quoted caption"),
    ("see https://www.example.com/cats?id=7 for cats", "see ?id=7 for cats"),
    ("<b>bold</b> cat &amp; dog", "bold cat dog"),
    ("tag <script>run()</script>end", "tag end"),
    ("by @someone a cat", "by a cat"),
    ("cat 猫 ネコ", "cat ネコ"),
    ("range 3–4 — done", "range 3-4 - done"),
    ("‘one’ “two” «three»", 'one\' "two" "three'),
    ("host 192.168.1.1 here", "host here"),
    ("line\\nbreak", "line break"),
    ("#12 and #12345 and 1234567", "and and"),
    ("file cat.jpg here", "file here"),
    ("wow!!! ... ***cat***", "wow!!! cat"),
    ("this-is-my-cute-cat", "this is my cute cat"),
    ("red-and-blue cat", "red-and-blue cat"),
    ("jc6640 jc6640vc 66ab12 j2d1a2a", ""),
    ("free shipping worldwide cat", "worldwide cat"),
    ("click for more cats free download", "cats"),
    ("page 12 of cats", "of cats"),
    ("poster 800x600 cat", "poster cat"),
    ("cats,dogs/birds", "cats, dogs birds"),
    ("cafÃ© cat", "cafã cat"),
    ("100%25 cat+dog", "100% cat dog"),
    ("_cat_", "cat"),
    ("   ", ""),
]


@pytest.mark.parametrize(("caption", "cleaned"), CASES)
def test_cleaning(caption: str, cleaned: str) -> None:
    assert clean_caption(caption) == cleaned
