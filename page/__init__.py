"""The page for browsers. Optional; model_server.py puts it in."""
