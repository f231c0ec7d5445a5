"""The page for people who look: what the models are, in a browser."""
