"""What a model is and how it lies on disk; no HTTP."""
