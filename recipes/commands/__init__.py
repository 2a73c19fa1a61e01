"""The command line's parts: what each command takes, and what people see of it."""
