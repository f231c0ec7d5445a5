"""Creates many models on disk without a server, as a copy by rsync or tar would."""

import hashlib
import json
import os
from collections.abc import Iterator
from math import prod
from pathlib import Path

SHAPE = (100, 10, 20, 5)    # projects, apps in each, versions in each, names in each: 100,000 models
BYTES = b"the bytes of a model\n"
DESCRIPTION = "fine-tuned on the reviews of last year"


def names(shape: tuple[int, ...]) -> Iterator[tuple[str, str, str, str]]:
    for project in range(shape[0]):
        for app in range(shape[1]):
            for version in range(shape[2]):
                for name in range(shape[3]):
                    yield f"project{project:03}", f"app{app:02}", f"1.{version}.0", f"model{name}"


def count_of(shape: tuple[int, ...]) -> int:
    return prod(shape)


def shape_of(models: int, each: int = SHAPE[-1]) -> tuple[int, ...]:
    """The shape for so many models, `each` in a version, close to SHAPE: with fewer projects, apps, then versions."""
    _, apps, versions, _ = SHAPE
    below = apps * versions * each
    return (max(1, models // below), min(apps, max(1, models // (versions * each))),
            min(versions, max(1, models // each)), each)


def write_model(root: Path, model: tuple[str, ...], description: str = DESCRIPTION) -> None:
    """Writes a model and its metadata.json as the server would."""
    directory = "/".join((str(root), *model))
    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/model", "wb") as file:
        file.write(BYTES)
    moment = "2026-01-31T12:00:00.000Z"
    with open(f"{directory}/metadata.json", "w") as file:
        file.write(json.dumps({
            "project_id": model[0], "app_name": model[1], "version": model[2], "model_name": model[3],
            "filename": "model.safetensors", "size": len(BYTES), "sha256": hashlib.sha256(BYTES).hexdigest(),
            "description": description, "framework": "pytorch", "metadata": {"stage": "candidate", "accuracy": "0.93"},
            "uploaded_at": moment, "updated_at": moment}, indent=2) + "\n")


def build(root: Path, shape: tuple[int, ...]) -> int:
    count = 0
    for model in names(shape):
        write_model(root, model)
        count += 1
    return count


def read_all(root: Path) -> int:
    """What a script without an index does for a list: reads and parses every metadata.json."""
    count = 0
    for project in os.scandir(root):
        if project.name.startswith("."):
            continue
        for app in os.scandir(project):
            for version in os.scandir(app):
                for model in os.scandir(version):
                    with open(f"{model.path}/metadata.json", "rb") as file:
                        count += bool(json.loads(file.read())["model_name"])
    return count
