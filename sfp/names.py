"""Names as people type them."""


def parse_names(text: str) -> list[str | list[str]]:
    """ "cat, sofa" or "cat; sofa, couch" (with synonyms) as a list of names."""
    if ";" in text:
        return [[word.strip() for word in group.split(",")] for group in text.split(";")]
    return [word.strip() for word in text.split(",")]
