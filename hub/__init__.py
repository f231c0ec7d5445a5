"""Optional: what clients of the Hugging Face Hub ask for, to read models from here."""
