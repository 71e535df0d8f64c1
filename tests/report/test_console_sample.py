"""How the console shows the text that a model has written at the end of a run."""

from consoles import pipe, written


def test_a_sample_cannot_drive_the_terminal(play):
    console, file = pipe()
    play(console, sample="a\x1b[2Jb\x07\u202ec\td")
    assert written(file).splitlines()[-1] == "  a\ufffd[2Jb\ufffd\ufffdc       d"


def test_a_sample_reads_as_code(play):
    """Indentation stays; blanks at lines' ends, empty lines in a row, and blanks beyond all indentation go."""
    sample = "\n\n" + 60 * " " + "def f(self):  \n    if  self:\n\n  \n \n\treturn" + " " * 20 + "1" + "\n" * 9
    console, file = pipe()
    play(console, sample=sample)
    written_lines = written(file).splitlines()
    assert written_lines[written_lines.index("sample of text that the model writes") + 1 :] == [
        " " * 18 + "def f(self):",
        "      if  self:",
        "",
        "          return" + " " * 16 + "1",
    ]


def test_a_sample_of_blanks_and_one_of_long_lines(play):
    console, file = pipe()
    play(console, sample=" \n \n")
    assert written(file).endswith("\nsample of text that the model writes\n")
    console, file = pipe()
    play(console, sample="word " * 16 + "y" * 100)
    assert written(file).splitlines()[-5:] == [
        "sample of text that the model writes",
        "  " + "word " * 14 + "word",
        "  word",
        "  " + "y" * 78,
        "  " + "y" * 22,
    ]
