"""`python -m server`: the same as `foreword serve`."""

from server.cli.serve import main

if __name__ == "__main__":
    main()
