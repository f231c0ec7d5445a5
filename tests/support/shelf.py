"""Models for tests of lists."""


MODELS = [      # in the order of a list: by project, app, version and name, not by the text of the path
    ("P", "a", "1.0.0", "m"), ("p1", "a", "1.0.0", "m"), ("p1", "a", "1.0.0", "m-2"), ("p1", "a", "1.0.0", "m.2"),
    ("p1", "a", "1.0.0+b", "m"), ("p1", "a", "1.0.0-rc.1", "m"), ("p1", "a+b", "1", "m"), ("p1", "a-b", "1", "m"),
    ("p1", "b", "10", "x"), ("p1", "b", "9", "x"), ("p1-x", "a", "1", "m"), ("p2", "_a", "1", "m"),
    ("p2", "a", "1", "m"),
]


def names_of(entry):
    return (entry["project_id"], entry["app_name"], entry["version"], entry["model_name"])
