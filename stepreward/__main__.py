"""`python -m stepreward JOB …` is `stepreward JOB …`."""

from stepreward.cli import main

main()
