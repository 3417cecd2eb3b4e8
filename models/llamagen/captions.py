"""Cleaning of captions as DeepFloyd IF, PixArt and LlamaGen cleaned the captions that they trained on.

Web captions carry addresses, mark-up, file names and sales talk; the models never saw them. The rules change
plain prompts little: lower case, brackets and repeated punctuation gone.
"""

import html
import re
from html.parser import HTMLParser
from urllib.parse import unquote_plus

import ftfy

DOMAIN = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
SUFFIXES = r"(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
# All that Unicode calls a dash and was one when the rules were written, and the long signs that look like one.
DASHES = "-֊־᐀᠆‐-―⸗⸚⸺⸻⹀〜〰゠︱︲﹘﹣－"
CJK = "\u31c0-\u9fff"  # strokes, phonetic extensions, enclosed and unified ideographs, hexagrams

Rules = tuple[tuple[str, str], ...]

ADDRESSES: Rules = tuple((rf"\b(?:{scheme}:(?:/{{1,3}}|[a-zA-Z0-9%])|{DOMAIN})", "") for scheme in ("https?", "www"))

SIGNS: Rules = (
    (r"@\w+\b", ""),  # nicknames
    (rf"[{CJK}]+", ""),
    (rf"[{DASHES}]+", "-"),
    (r"[`´«»“”¨]", '"'),
    (r"[‘’]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),  # a time of day at the end
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.{SUFFIXES}", ""),  # file names
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)

WORDS: Rules = (
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # article numbers of several shapes
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{SUFFIXES}(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # sizes
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)

JOINTS = re.compile(r"[-_]")
JOINTS_KEPT = 3  # a caption with more of them is a title written as one word


class _Text(HTMLParser):
    """The text of a page without its tags, scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style"):
            self.hidden = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self.hidden:
            self.hidden = ""

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def clean_caption(caption: str) -> str:
    """The caption as the text encoder is to read it; the rules run twice, since each may uncover what others hit."""
    return _clean_once(_clean_once(caption))


def _clean_once(caption: str) -> str:
    caption = unquote_plus(caption).strip().lower().replace("<person>", "person")
    caption = _apply(ADDRESSES, caption)
    caption = _apply(SIGNS, _without_tags(caption))
    if len(JOINTS.findall(caption)) > JOINTS_KEPT:
        caption = JOINTS.sub(" ", caption)
    caption = html.unescape(html.unescape(ftfy.fix_text(caption))).strip()
    return _apply(WORDS, caption).strip()


def _apply(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def _without_tags(text: str) -> str:
    parser = _Text()
    parser.feed(text)
    parser.close()
    return "".join(parser.parts)
