"""The parts of PID 1: only stack.py and sv.py import from here."""
