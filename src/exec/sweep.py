"""A sweep over settings."""

from _checkout import run

if __name__ == "__main__":
    run("sweep")
