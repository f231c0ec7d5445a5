#!/bin/sh
# Installs the clients that tests/clients/test_hub.py runs, into a directory `hub` of the virtual environment given:
# the newest ones with packages of that environment (torch), huggingface_hub 0.36, and the one for JavaScript.
set -eu
venv=$(realpath "$1")
"$venv/bin/python" -m venv "$venv/hub"
for site in "$venv"/lib/python*/site-packages; do
    echo "$site" >"$venv/hub/${site#"$venv/"}/of-the-tests.pth"
done
"$venv/hub/bin/pip" install -q huggingface_hub transformers sentence-transformers tokenizers safetensors fsspec
# here, too, where another library has brought it into the environment given: its command is run from here
"$venv/hub/bin/pip" install -q --ignore-installed --no-deps huggingface_hub
"$venv/bin/pip" install -q --target "$venv/hub/0.36" 'huggingface_hub==0.36.*'
npm install --silent --no-fund --no-audit --prefix "$venv/hub/js" @huggingface/hub
