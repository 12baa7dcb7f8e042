"""`python -m stepreward JOB …` is `stepreward JOB …`."""

from stepreward.cli import main

if __name__ == "__main__":
    main()
