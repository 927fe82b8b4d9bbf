"""Look into finished runs: where mask, update and knowledge sit."""

from _checkout import run

if __name__ == "__main__":
    run("depth")
