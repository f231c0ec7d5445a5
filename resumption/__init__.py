"""Uploads that are continued, or need no bytes. Optional; model_server.py puts it in."""
