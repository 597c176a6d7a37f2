"""The functions of the Python prompt. This is the one list of them: `from sv import *`, the command sv, its help follow it.

They return data (lists and dicts that print themselves as a table) and raise `SVError` with a sentence.
"""

import sys as _sys
from types import FunctionType as _FunctionType

from onboard.to_pid1 import SVError as SVError
from prompt import arguments as _arguments
from prompt.board_facts import board as board
from prompt.board_facts import halt as halt
from prompt.board_facts import post_mortem as post_mortem
from prompt.board_facts import poweroff as poweroff
from prompt.board_facts import reboot as reboot
from prompt.board_facts import reload as reload
from prompt.board_facts import snooze as snooze
from prompt.bootchart import bootchart as bootchart
from prompt.explain import explain as explain
from prompt.explain import facts as facts
from prompt.explain import tell as tell
from prompt.explain import timeline as timeline
from prompt.inside_pid1 import console as console
from prompt.inside_pid1 import crashes as crashes
from prompt.inside_pid1 import memory as memory
from prompt.interfaces import network as network
from prompt.logs import logs as logs
from prompt.processes import restart_process as restart_process
from prompt.processes import signal_process as signal_process
from prompt.processes import start_process as start_process
from prompt.processes import stats_process as stats_process
from prompt.processes import status as status
from prompt.processes import stop_process as stop_process
from prompt.push import drop as drop
from prompt.push import keep as keep
from prompt.push import push as push
from prompt.top import top as top
from prompt.update import commit as commit
from prompt.update import update as update
from prompt.upgrading import upgrade as upgrade
from prompt.watch import watch as watch

for _name, _value in list(globals().items()):
    if isinstance(_value, _FunctionType) and not _name.startswith("_"):
        globals()[_name] = _arguments.checked(_value)  # what it is called with is checked first

if hasattr(_sys, "ps1"):  # `from sv import *`, typed into a plain Python
    from prompt.hooks import install as _install

    _install()
