"""Between the API process and the engine process: messages, and both ends of their socket."""
