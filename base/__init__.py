"""What everything stands on: cheap imports, system calls, files."""
