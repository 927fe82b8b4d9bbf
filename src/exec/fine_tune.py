"""Make the model to be unlearned, or the retain-only model."""

from _checkout import run

if __name__ == "__main__":
    run("fine-tune")
