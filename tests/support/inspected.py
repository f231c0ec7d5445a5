"""What inspection says of some bytes."""

import io
import json

from inspection import formats


def inspect(data):
    found = formats.inspect(io.BytesIO(data), len(data))
    assert found.format in formats.FORMATS
    document = json.dumps(found.details, allow_nan=False, ensure_ascii=False).encode()
    assert len(document) < 100_000
    return found


def imports(data):
    """The imports that were found, None where there is no pickle, and whether there cannot be more."""
    details = inspect(data).details
    return details.get("imports_found"), details.get("complete", True)
