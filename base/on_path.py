"""Stands for one of our modules on Python's path: `make install` copies this file to LIB/names under each of a few names.

Only these names are on every Python's path. Our packages (tables, services, ...) are not, so they hide nobody else's module
of the same name. A program that imports one of ours gets LIB at the front of its path, so that no installed module hides ours.
"""

import importlib
import os
import sys

LIB = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:] = [LIB, *(folder for folder in sys.path if folder != LIB)]  # a PYTHONPATH may have it behind this folder
del sys.modules[__name__]  # this file; the import below finds the module itself, and Python hands that one out
importlib.import_module(__name__)
