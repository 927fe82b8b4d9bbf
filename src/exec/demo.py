"""The main job on the embedded benchmark."""

from _checkout import run

if __name__ == "__main__":
    run("demo")
