"""The services that every board has, each a process of its own."""
