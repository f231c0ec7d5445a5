"""A peer in the benchmarks: a few lines of FastAPI that serve the same files, from the directory STORAGE."""

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from fastapi import FastAPI, Request, UploadFile
from fastapi.responses import FileResponse, JSONResponse

STORAGE = Path(os.environ["STORAGE"])
MODEL = "/models/{project_id}/{app_name}/{version}/{model_name}"
app = FastAPI()


def place(project_id: str, app_name: str, version: str, model_name: str) -> Path:
    return STORAGE / project_id / app_name / version / model_name


@app.get("/health")
async def health() -> JSONResponse:
    disk = os.statvfs(STORAGE)
    return JSONResponse({"status": "healthy", "timestamp": datetime.now(UTC).isoformat(), "storage_path": str(STORAGE),
                         "free_bytes": disk.f_bavail * disk.f_frsize})


@app.get(MODEL + "/info")
async def info(request: Request, project_id: str, app_name: str, version: str, model_name: str) -> JSONResponse:
    document = json.loads((place(project_id, app_name, version, model_name) / "metadata.json").read_bytes())
    path = f"{project_id}/{app_name}/{version}/{model_name}"
    return JSONResponse({**document, "path": f"{path}/model", "url": f"{request.base_url}models/{path}"})


@app.api_route(MODEL, methods=["GET", "HEAD"])
async def download(project_id: str, app_name: str, version: str, model_name: str) -> FileResponse:
    return FileResponse(place(project_id, app_name, version, model_name) / "model")


@app.post("/models/upload")
def upload(project_id: str, app_name: str, version: str, model_name: str, file: UploadFile) -> dict[str, str]:
    target = place(project_id, app_name, version, model_name)
    target.mkdir(parents=True, exist_ok=True)
    with (target / "model").open("wb") as model:
        shutil.copyfileobj(file.file, model)
    return {"message": "ok"}


@app.put(MODEL)
async def put(request: Request, project_id: str, app_name: str, version: str, model_name: str) -> dict[str, str]:
    target = place(project_id, app_name, version, model_name)
    target.mkdir(parents=True, exist_ok=True)
    with (target / "model").open("wb") as model:
        async for block in request.stream():
            model.write(block)
    return {"message": "ok"}
