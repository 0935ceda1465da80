"""`python -m skipalign`, so that `accelerate launch -m skipalign train ...` works."""

from skipalign.cli import main

if __name__ == "__main__":
    main()
