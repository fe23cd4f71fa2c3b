"""Second frozen models, which methods look at images with besides CLIP."""
