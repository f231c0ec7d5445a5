"""Makes a repository of a small BERT with random weights in the directory given, and prints what it makes of a word."""

import json
import sys
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel, BertTokenizerFast

place = Path(sys.argv[1])
(place / "1_Pooling").mkdir(parents=True)
(place / "onnx").mkdir()
torch.manual_seed(0)
letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained(place)
config = BertConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                    intermediate_size=64, max_position_embeddings=64)
BertModel(config).save_pretrained(place)
BertModel(config).save_pretrained(place / "encoder")
(place / "modules.json").write_text(json.dumps([
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]))
(place / "1_Pooling/config.json").write_text('{"word_embedding_dimension": 32, "pooling_mode_mean_tokens": true}')
(place / "onnx/model.onnx").write_bytes(b"not read by anybody here" * 100)
print(json.dumps(SentenceTransformer(str(place), device="cpu").encode(["hub"])[0].tolist()))
