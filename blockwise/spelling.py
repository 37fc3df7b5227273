"""Names that a misspelled one may have meant."""

import difflib


def close(name, names):
    """The names that look like `name`, in whatever case."""
    spelled = {word.lower(): word for word in names}
    return [spelled[word] for word in difflib.get_close_matches(name.lower(), spelled)]


def did_you_mean(names):
    return f"; did you mean {' or '.join(names)}?" if names else ""
