"""`python -m server` is `foreword serve`."""

from server.cli.serve import main

if __name__ == "__main__":
    main()
