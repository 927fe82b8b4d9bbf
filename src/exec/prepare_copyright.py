"""Cut a text into the data sets of the copyright task."""

from _checkout import run

if __name__ == "__main__":
    run("prepare-text")
