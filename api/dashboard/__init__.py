"""The dashboard: pages of the API's process to watch a cutover on, and to act on it."""
