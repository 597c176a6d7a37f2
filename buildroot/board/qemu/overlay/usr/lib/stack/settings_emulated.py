"""On top of the image's profile, for an emulated machine: its kernel has no modules, and this terminal is its console."""

CONSOLE_LOGIN = "prompt"
MODULES = ()
BOOT_FILES = ("LABEL=BOOT", "/dev/vda1")
