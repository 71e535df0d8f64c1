"""The tool that runs a document: it must find every output that its code did not print."""

import pytest
from run_document import DocumentError, as_printed, main

RIGHT = """\
Words.

```python
value = 2
def double(number):
    return 2 * number
```

More words.

```python
for _ in range(2):
    print(double(value))
```

```text
4
4
```

The end.
"""


def test_a_document_that_shows_what_is_printed_stays_as_it_is():
    assert as_printed(RIGHT) == RIGHT


@pytest.mark.parametrize(
    ("shown", "instead"),
    [
        ("4\n4\n", "4\n5\n"),
        ("4\n4\n", "4\n"),
        ("\n```text\n4\n4\n```\n", ""),
        ("    return 2 * number\n```\n", "    return 2 * number\n```\n\n```text\nnothing\n```\n"),
    ],
)
def test_a_wrong_missing_or_invented_output_is_found_and_written(tmp_path, capsys, shown, instead):
    document = tmp_path / "document.md"
    document.write_text(RIGHT.replace(shown, instead))
    assert main([str(document)]) == 1
    assert capsys.readouterr().out.startswith(f"--- {document}\n+++ what was printed\n@@ ")
    assert main([str(document), "--write"]) == 0
    assert document.read_text() == RIGHT
    assert main([str(document)]) == 0
    assert capsys.readouterr().out.endswith("2 blocks ran; every output is what they printed\n")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print(1)\nvalue / 0\n", "line 3: NameError: name 'value' is not defined"),
        # A prompt wants an empty line after a function's body, and none inside it.
        ("def f():\n    return 1\nprint(f())\n", "line 3: SyntaxError: invalid syntax"),
        ("def f():\n    a = 1\n\n    return a\n", "line 3: IndentationError: unexpected indent"),
        ("print(\n", "line 3: SyntaxError: the last statement is unfinished"),
    ],
)
def test_code_that_fails_or_cannot_be_pasted_is_an_error_with_its_line(code, message):
    with pytest.raises(DocumentError, match=r"^line 3: ") as raised:
        as_printed(f"Words.\n\n```python\n{code}```\n")
    assert str(raised.value).startswith(message)


def test_a_value_that_the_prompt_would_echo_counts_as_printed():
    text = "```python\n1 + 1\n```\n"
    assert as_printed(text) == f"{text}\n```text\n2\n```\n"


def test_an_output_after_no_code_is_an_error():
    with pytest.raises(DocumentError, match=r"^line 21: an output that follows no code$"):
        as_printed(f"{RIGHT}\n```text\n4\n```\n".replace("The end.\n\n", ""))
