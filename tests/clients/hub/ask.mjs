// Asks for everything that @huggingface/hub has a function for that reads, and prints the answers as JSON.
import * as hub from "@huggingface/hub";

const hubUrl = process.env.HF_ENDPOINT, repo = "acme/tiny";
const all = async (entries) => { const found = []; for await (const each of entries) found.push(each); return found; };
const file = await hub.downloadFile({ hubUrl, repo, path: "onnx/model.onnx" });
const bytes = new Uint8Array(await file.arrayBuffer());
const part = await (await hub.downloadFile({ hubUrl, repo, path: "onnx/model.onnx" })).slice(9, 16).text();
const info = await hub.fileDownloadInfo({ hubUrl, repo, path: "config.json", revision: "1.0.0" });
const missing = await hub.modelInfo({ hubUrl, name: "acme/none" }).catch((error) => error.message);
console.log(JSON.stringify({
  downloaded: bytes.length, part, size: info.size, etag: info.etag,
  raw: (await hub.fileDownloadInfo({ hubUrl, repo, path: "config.json", raw: true })).size,
  none: await hub.fileDownloadInfo({ hubUrl, repo, path: "none.json" }),
  files: (await all(hub.listFiles({ hubUrl, repo, recursive: true }))).filter((f) => f.type === "file").map((f) => f.path),
  folder: (await all(hub.listFiles({ hubUrl, repo, path: "onnx" }))).map((f) => f.path),
  paths: (await hub.pathsInfo({ hubUrl, repo, paths: ["config.json", "none"] })).map((f) => f.path),
  exist: [await hub.fileExists({ hubUrl, repo, path: "config.json" }), await hub.fileExists({ hubUrl, repo, path: "no" })],
  model: (await hub.modelInfo({ hubUrl, name: repo })).name,
  models: (await all(hub.listModels({ hubUrl, search: { owner: "acme" } }))).map((m) => m.name),
  sha: (await hub.modelInfo({ hubUrl, name: repo, additionalFields: ["sha"] })).sha,
  parameters: (await hub.parseSafetensorsMetadata({ hubUrl, repo, path: "model.safetensors" })).header["embeddings.word_embeddings.weight"].shape,
  who: (await hub.whoAmI({ hubUrl, accessToken: "hf_any" })).name,
  missing,
}));
