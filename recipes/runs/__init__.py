"""The store of results, a run's folder, the environment, failures and exit codes."""
