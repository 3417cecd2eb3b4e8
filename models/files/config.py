"""A checkpoint's JSON files: read, or refused with one sentence. Nothing here imports torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.errors import ModelError
from models.files.reading import note

QUANTIZED = "quantization_config"


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file. Raises ModelError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        note(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist: point to a whole checkpoint folder, or copy it again") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): make it readable, or copy it again") from error
    except RecursionError as error:
        raise ModelError(f"{path} is nested too deep for a config: copy the checkpoint again") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error}): copy the checkpoint again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} is not an object: copy the checkpoint again")
    return found


def check_not_quantized(path: Path, config: Mapping[str, Any]) -> None:
    """Neither the config nor one of its sections says that the weights are codes. Raises ModelError."""
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        if section.get(QUANTIZED):
            raise ModelError(
                f"{path} has a {QUANTIZED}: give the unquantised checkpoint, or take that out if the weights beside it "
                "are plain"
            )
