"""Tasks as code: `foreword apply` makes a server's tasks as files say, `foreword export` writes
such a file."""
