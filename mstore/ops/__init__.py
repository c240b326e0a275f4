"""What can be done with a repository: plain functions, one module a task."""
