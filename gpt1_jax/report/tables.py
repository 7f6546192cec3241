"""Tables for a terminal: the one printer of all tasks."""

from collections.abc import Iterable, Sequence

from etils import epath

from gpt1_jax.files import write_atomically


def format_table(columns: Sequence[tuple[str, int, str]], entries: Iterable[Sequence]) -> str:
    """A header line, then one line per entry.

    Args:
      columns: (heading, width, format) each. The format is that of a number, such as '.3f', aligned on the right; ''
        for text, on the left. A column with a longer cell is as wide as that cell and one space.
      entries: one value per column each; None leaves the cell empty.
    """
    headings, least, formats = zip(*columns, strict=True)
    cells = [
        headings,
        *(
            ['' if value is None else format(value, spec) for value, spec in zip(entry, formats, strict=True)]
            for entry in entries
        ),
    ]
    longest = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = [
        f'{">" if spec else "<"}{max(width, length + 1)}'
        for spec, width, length in zip(formats, least, longest, strict=True)
    ]
    return '\n'.join(''.join(map(format, line, aligned)) for line in cells)


def publish(workdir: epath.Path, text: str) -> None:
    """Writes a task's table to WORKDIR/table.txt, and prints it. Raises UserError if it cannot be written."""
    write_atomically(workdir / 'table.txt', [f'{text}\n'.encode()])
    print(f'\n{text}')
