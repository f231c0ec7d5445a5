"""The API of the Hugging Face Hub, for reading. Optional; model_server.py puts it in."""
