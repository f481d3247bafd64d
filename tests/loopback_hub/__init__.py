"""A Hub on this machine: what the real client asks for, answered over real HTTP, with faults on request.

Written from the source of the installed client, so that pushing and pulling are proved with what users run.
Use the fixture `hub` of tests/conftest.py, or `with LoopbackHub(folder) as hub:`.
"""

from .faults import Fault
from .messages import Request
from .server import LoopbackHub
from .store import Commit, File, Repository


__all__ = ["Commit", "Fault", "File", "LoopbackHub", "Repository", "Request"]
