"""The description of the API for programs: OpenAPI 3.1. Optional; model_server.py puts it in."""
