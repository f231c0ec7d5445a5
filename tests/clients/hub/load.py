"""Loads a repository with each of the libraries, and prints what it says as JSON."""

import json

from huggingface_hub import hf_hub_download
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer, pipeline

REPO = "acme/tiny"
model = AutoModel.from_pretrained(REPO)
with safe_open(hf_hub_download(REPO, "encoder/model.safetensors"), "pt") as tensors:
    encoder = AutoModel.from_pretrained(REPO, subfolder="encoder", revision="1.0.0")
    same = tensors.get_tensor("embeddings.word_embeddings.weight").equal(encoder.embeddings.word_embeddings.weight)
features = pipeline("feature-extraction", model=REPO, device="cpu")("hub")
print(json.dumps({
    "parameters": model.num_parameters(),
    "same": same,
    "tokens": AutoTokenizer.from_pretrained(REPO)("hub")["input_ids"],
    "fast_tokens": Tokenizer.from_pretrained(REPO).encode("hub").ids,
    "features": [len(features[0]), len(features[0][0])],
    "sentence": SentenceTransformer(REPO, device="cpu").encode(["hub"])[0].tolist(),
}))
