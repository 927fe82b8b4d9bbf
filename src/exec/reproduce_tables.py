"""Make a table of the paper."""

from _checkout import run

if __name__ == "__main__":
    run("table")
