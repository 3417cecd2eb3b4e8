"""Pages from the templates beside this file: each is one file that needs nothing else."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy import ndarray
from PIL import Image


def render(template: str, **content: Any) -> str:
    """A page from one of the templates beside this file; all text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment.get_template(template).render(**content)


def data_uri(image: UInt8[ndarray, "H W 3"]) -> str:
    """The image as a PNG inside a URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def pixels(uri: str) -> UInt8[ndarray, "H W 3"]:
    """The image inside such a URI."""
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.asarray(image)
