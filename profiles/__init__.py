"""Settings of one kind of board each, on top of settings.py."""
