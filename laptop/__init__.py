"""The board in namespaces of a laptop."""
