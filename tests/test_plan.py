"""`python -m convgru_fused plan`."""

import pytest

from convgru_fused import cli


def test_table(capsys):
    assert cli.main(["plan", "-C", "32", "-K", "16", "--image", "28x30", "-T", "7", "--threads", "2"]) == 0
    title, header, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("T=7 N=1 32->16 28x30, kernel 3x3, gru-rcn, float32, fast; ")
    assert title.endswith(", 2 threads")
    assert header.split() == ["convolution", "times", "channels", "algorithm", "tiles", "together", "parts"]
    assert [row[2:24].strip() for row in rows] == [
        "W*x",
        "U_rz*h",
        "U_n*(r.h)",
        "gradient of r.h",
        "gradient of h",
        "gradient of x",
        "gradients of W and U",
    ]
    assert rows[0].split()[-6:] == ["1", "32->48", "winograd4", "392", *rows[0].split()[-2:]]


def test_row_of_the_benchmark_has_a_table_for_each_cell(capsys):
    assert cli.main(["plan", "--row", "raft_sep", "--precision", "strict"]) == 0
    output = capsys.readouterr().out
    assert "T=1 N=1 256->128 55x128, kernel 1x5" in output and "kernel 5x1" in output
    assert "direct" in output and "winograd" not in output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--kernel-size", "4"], "--kernel-size: expected odd numbers, got 4x4"),
        (["--row", "pool9"], "unknown workload 'pool9': expected one of gru_rcn_pool2"),
        (["--row", "raft_e2e"], "--row: expected a layer, gru_rcn_pool2, "),
    ],
    ids=["even-kernel", "unknown-row", "no-layer"],
)
def test_refused_request(options, words, capsys):
    assert cli.main(["plan", *options]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--image", "3x"], "expected a positive integer or two, as 1x5, got '3x'"),
        (["--image", "0x3"], "expected an integer from 1 to 1000000, got '0'"),
        (["-T", "-1"], "expected an integer from 1 to 1000000, got '-1'"),
        (["-T", "9" * 20], "expected an integer from 1 to 1000000, got '99999999999999999999'"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
    ],
    ids=["no-size", "no-pixels", "negative-steps", "too-many-steps", "unknown-dtype"],
)
def test_bad_option(options, words, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["plan", *options])
    assert exit.value.code == 2
    assert words in capsys.readouterr().err


def test_plan_of_another_variant_and_type(capsys):
    def plan(*options):
        assert cli.main(["plan", "-C", "32", "-K", "16", "--image", "28x30", "--threads", "2", *options]) == 0
        return [row.split() for row in capsys.readouterr().out.splitlines()[2:]]

    assert [row[0] for row in plan("--variant", "cudnn") if row[0].startswith("U")] == ["U*h"]
    assert {row[-4] for row in plan("--dtype", "float64")} == {"direct"}
