"""Formats that are told by a pattern at their beginning, and what patterns in their first and last bytes tell."""

import re
from typing import Any

from inspection.headers import MAX_TEXT
from inspection.reader import Window, clip

NEAR = 256 * 1024       # bytes searched at each end: in a tokenizer.json the added tokens come before its model

UBJ = rb"(?:L\0{7}|l\0{3}|[iU])"     # what a length of one byte begins with in UBJSON
PATTERNS: tuple[tuple[str, bytes, dict[str, bytes]], ...] = (
    ("xgboost", rb'\s*\{\s*"learner"\s*:\s*\{', {
        "version": rb'"version"\s*:\s*\[\s*(\d+\s*,\s*\d+\s*,\s*\d+)\s*\]\s*\}\s*$',
        "trees": rb'"num_trees"\s*:\s*"(\d+)"', "objective": rb'"objective"\s*:\s*\{\s*"name"\s*:\s*"([^"]+)'}),
    ("xgboost", rb"\{" + UBJ + rb"\x07learner\{", {
        "trees": rb"num_treesS" + UBJ + rb".(\d+)", "objective": rb"objective\{.{1,9}nameS.{2,9}?([a-z:]{3,})"}),
    ("lightgbm", rb"tree\r?\nversion=v(?P<version>\d+)", {
        "objective": rb"\nobjective=(\S+)", "classes": rb"\nnum_class=(\d+)"}),
    ("tokenizer", rb'\s*\{\s*"version"\s*:\s*"(?P<version>[\d.]+)"\s*,\s*"truncation"\s*:', {
        "model": rb'"model"\s*:\s*\{\s*"type"\s*:\s*"(\w+)"'}),
    ("openvino", rb'(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<net\s+name="(?P<name>[^"]*)"\s+version="(?P<version>\d+)"',
     {}),
    ("ncnn", rb"7767517\r?\n(?P<layers>\d+) (?P<blobs>\d+)\s", {}),
    ("ncnn", rb"\xdd\x85\x76\0..[\0-\x0f]\0..[\0-\x0f]\0", {}),
    ("paddle", rb'\s*\{\s*"base_code"\s*:\s*\{\s*"magic"\s*:\s*"pir"', {"version": rb'"version"\s*:\s*(\d+)'}),
    ("paddle", rb"\0{16}[\x02-\x40]\0\0\0\x08[\0-\x20](?:\x10|.{4})", {}))   # weights, from their first tensor on


def pattern(window: Window) -> tuple[str, dict[str, Any]] | None:
    """The format and its details, None when no pattern fits."""
    head = window.at(0, NEAR)
    for name, begins, told in PATTERNS:
        if first := re.match(begins, head, re.DOTALL):
            text = head + window.at(max(NEAR, window.length - NEAR), NEAR)
            found = {key: match[1] for key, each in told.items() if (match := re.search(each, text, re.DOTALL))}
            values = {key: clip(value.decode("utf-8", "replace"), MAX_TEXT)
                      for key, value in (first.groupdict() | found).items()}
            return name, {key: int(value) if value.isdecimal() and len(value) < 10 else value
                          for key, value in values.items()}
    return None
