"""UniDet as a server: T2I-CompBench's own detector, to be run in an environment of its own.

    python -m eval.compbench.unidet --checkout UniDet --config CONFIG.yaml --weights WEIGHTS.pth --port 8110

UniDet is an old fork of detectron2 without a maintained port, so this file is run where `unidet-requirements.txt`
(beside it) is installed. Spatial scores take `Unified_learned_OCIM_RS200_6x+2x`, depth and numeracy the R50 variant.
Written from the two projects' published interfaces; it has not been run with the real weights.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request

from eval.compbench.boxes import LONG_SIDE, SHORT_SIDE, Labelled
from eval.compbench.served import Answer, Found, Health, Question, decode
from rewards.files.pictures import PictureError
from rewards.http.token import HEADER, secret, shown

CONFIDENCE = 0.5  # detections must score at least this


class Unidet:
    def __init__(self, predictor: Any, labels: list[str], name: str) -> None:
        self.predictor, self.labels, self.name = predictor, labels, name

    @classmethod
    def load(cls, checkout: Path, config: Path, weights: Path, device: str) -> "Unidet":
        sys.path.insert(0, str(checkout / "projects" / "UniDet"))
        from detectron2.config import get_cfg
        from detectron2.engine import DefaultPredictor
        from unidet.config import add_unidet_config

        settings = get_cfg()
        add_unidet_config(settings)
        settings.merge_from_file(str(config))
        settings.MODEL.WEIGHTS, settings.MODEL.DEVICE = str(weights), device
        settings.MODEL.ROI_HEADS.SCORE_THRESH_TEST = CONFIDENCE
        settings.INPUT.MIN_SIZE_TEST, settings.INPUT.MAX_SIZE_TEST = SHORT_SIDE, LONG_SIDE
        path = checkout / "projects" / "UniDet" / settings.MULTI_DATASET.UNIFIED_LABEL_FILE
        categories = json.loads(path.read_text(encoding="utf-8"))["categories"]
        labels = [next(part for part in one["name"].split("_") if part).lower() for one in categories]
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        return cls(DefaultPredictor(settings), labels, f"UniDet {config.stem} {digest[:8]}")

    def detect(self, image: np.ndarray) -> list[Labelled]:
        """The objects of an RGB picture, in the detector's order."""
        found = self.predictor(np.ascontiguousarray(image[..., ::-1]))["instances"].to("cpu")
        columns = found.pred_boxes.tensor.numpy(), found.scores.tolist(), found.pred_classes.tolist()
        return [Labelled(self.labels[label], box, score) for box, score, label in zip(*columns, strict=True)]


def create_app(detector: Any, token: bytes | None) -> FastAPI:
    """detector: with `name`, `labels` and `detect(image)`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def check(request: Request) -> None:
        if not shown(request.headers.get(HEADER, ""), token):
            raise HTTPException(401, "the token is missing or wrong")

    @app.get("/health")
    def health(request: Request) -> Health:
        check(request)
        return Health(detector=detector.name, vocabulary=sorted(set(detector.labels)))

    @app.post("/detect")
    def detect(request: Request, question: Question) -> Answer:
        check(request)
        try:
            images = [decode(text) for text in question.images]
        except (ValueError, PictureError) as error:
            raise HTTPException(422, f"an image is no PNG file that can be read ({error})") from error
        found = [
            [Found(label=one.label, box=one.box[:4].tolist(), score=one.score) for one in detector.detect(image)]
            for image in images
        ]
        return Answer(objects=found)

    return app


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.compbench.unidet")
    for name in ("checkout", "config", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8110)
    parser.add_argument("--device", default="cpu")
    wanted = parser.parse_args()
    import uvicorn

    token = secret()
    detector = Unidet.load(wanted.checkout, wanted.config, wanted.weights, wanted.device)
    uvicorn.run(create_app(detector, token), host=wanted.host, port=wanted.port, log_level="warning")


if __name__ == "__main__":
    main()
