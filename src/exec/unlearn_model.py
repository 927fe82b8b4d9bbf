"""Unlearn: load, build data, make or load the mask, train, save, evaluate."""

from _checkout import run

if __name__ == "__main__":
    run("unlearn")
