"""What the Python programs here have in common: the cases that come as an argument, and the lines that are printed; see README.md."""
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor


class Unsupported(Exception):
    """The client has no way of naming an identity like this."""


def run(ask, version):
    """Prints one line for each case: the token that `ask(case)` returns, and the `version(case)` of the client."""

    def answer(case):
        started = time.monotonic()
        try:
            said = {"token": ask(case)}
        except Unsupported:
            said = {"unsupported": True}
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        return {**said, "seconds": time.monotonic() - started, "version": version(case)}

    cases = json.loads(sys.argv[1])
    with ThreadPoolExecutor(len(cases)) as pool:
        for line in pool.map(answer, cases):
            print(json.dumps(line))
