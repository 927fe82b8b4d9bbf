"""A report about finished runs."""

from _checkout import run

if __name__ == "__main__":
    run("report")
