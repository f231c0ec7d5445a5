"""What the server sees in files that the real libraries write, and in malicious ones: `pytest tests/formats`.

Left out of a plain run for what tests/formats/requirements.txt installs, 1.3 GB with PyTorch; .ci/run runs it.
"""
