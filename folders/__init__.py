"""A version as a folder: as one tar, aliases. Optional; model_server.py puts it in."""
