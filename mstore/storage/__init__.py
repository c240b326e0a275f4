"""Places that hold a repository: keys to bytes."""
