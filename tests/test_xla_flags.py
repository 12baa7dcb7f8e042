"""Unknown XLA flags are dropped, because XLA would otherwise end the process without a message."""

from xla_flags import known_flags


def test_an_unknown_flag_is_left_out(tmp_path):
    flags = ("--xla_backend_optimization_level=0", "--xla_no_such_flag_exists=true")
    assert known_flags(tmp_path, flags) == "--xla_backend_optimization_level=0"


def test_what_is_known_is_kept(tmp_path):
    known = known_flags(tmp_path)
    (kept,) = tmp_path.iterdir()
    assert kept.read_text() == known and "--xla_backend_optimization_level=0" in known
    kept.write_text("--xla_kept")
    assert known_flags(tmp_path) == "--xla_kept"
