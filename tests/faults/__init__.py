"""What the server survives, tried on the real process: `pytest tests/faults`, the long version with `--rounds 300`."""

import pytest

pytest.register_assert_rewrite("faults.witness", "faults.tracing")  # so that a failure there shows its values
