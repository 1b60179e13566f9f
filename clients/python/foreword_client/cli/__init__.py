"""The `foreword` command."""

from foreword_client.cli.app import main, make_app

__all__ = ["main", "make_app"]
