"""What a file says of itself: its format, tensors, imports. Optional; model_server.py puts it in."""
