"""Communication between the API process and the engine process over a socket."""
