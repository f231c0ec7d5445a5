"""What a model is and how it is stored on disk; no HTTP."""
