"""HTTP straight to a pod's address, past whatever proxy the environment names: a proxy for what is outside knows no pods.

Each thread has a session, since requests' sessions are not made for several at once, and no connection is kept: a server that closes idle
ones would have the next question fail.
"""

import threading

import requests


class Direct(threading.local):
    """`session`, this thread's own."""

    def __init__(self) -> None:
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Connection"] = "close"
