"""Tars made by hand."""

import io
import tarfile

END = bytes(1024)


def member(name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def tar_of(*members, form=tarfile.PAX_FORMAT, **options):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, **options) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def headed(name, **fields):
    """One header and no content."""
    info, _ = member(name, **fields)
    return info.tobuf(tarfile.GNU_FORMAT)


def tar_with(files, **options):
    """A tar of {name: bytes}, as `tar c .` makes it."""
    return tar_of(*(member(f"./{name}", data) for name, data in files.items()), **options)
