"""Exit 0 if the server in this container is ready for requests, 1 if it is not."""

from __future__ import annotations

import http.client
import os
import sys


def is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if is_ready(int(os.environ.get("FOREWORD_PORT", "8000"))) else 1)
