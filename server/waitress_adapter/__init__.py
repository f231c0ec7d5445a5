"""The seam to waitress: everything that knows its insides."""
