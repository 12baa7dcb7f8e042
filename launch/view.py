"""Shows runs in a browser: live curves, episodes with the credit of each step, and trees; also while they go on.

    python launch/view.py runs/istar_sokoban             # serves a page on this machine and prints its address
    python launch/view.py runs/a runs/b                  # several runs in the same charts; a folder of runs works too
    python launch/view.py runs/a --html=run.html         # writes one file to share instead

A path is the workdir of a run, or a folder of runs. docs/runs.md describes the page.
"""

from __future__ import annotations

import sys

from stepreward.config import Option, parse_arguments
from stepreward.errors import UserError, launcher

RUN = Option("run", "workdirs of runs, or folders of runs")
OPTIONS = (
    Option("html", "write this one HTML file, which needs no server, and end"),
    Option("host", "address to listen on; addresses other than loopback are reachable from outside", default="127.0.0.1"),
    Option("port", "port to listen on; 0 takes a free one", default=8010, type=int),
    Option("no-browser", "do not open a browser", default=False, type=bool),
)


def main() -> None:
    options = parse_arguments(sys.argv[1:], options=OPTIONS, description=__doc__, positional=RUN, several=True)
    if not options.run:
        raise UserError("no run given: give the workdir of a run, or a folder of runs, such as runs/istar_sokoban; --help lists the flags")
    from stepreward.view import Content, serve_view, write_page
    from stepreward.view.server import check_installed

    content = Content(options.run)
    if options.html is not None:
        print(write_page(content.snapshot(), options.html))
        return
    check_installed()
    serve_view(content, options.host, options.port, browser=not options.no_browser)


if __name__ == "__main__":
    launcher(main)
