"""Everything that depends on the internals of waitress: see docs/development.md."""
