import gzip
import json
import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from retnet.data.corpus import Documents, cut_documents, find_files


def read(path, **options):
    return list(Documents((path,), **options))


def test_files_folders_and_globs_are_found_once_and_in_order(tmp_path):
    for name in ("b.txt", "a.txt", "deep/c.txt", "deep/.hidden", ".git/d.txt", "x[1].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)

    def names(*entries):
        found = find_files(entries, tmp_path, option="train")
        return [path.relative_to(tmp_path).as_posix() for path in found]

    assert names("b.txt", "a.txt", "b.txt") == ["b.txt", "a.txt"]
    assert names("*.txt") == ["a.txt", "b.txt", "x[1].txt"]
    assert names("**/*.txt") == ["a.txt", "b.txt", "deep/c.txt", "x[1].txt"]
    assert names("deep") == ["deep/c.txt"]
    assert names("x[1].txt") == ["x[1].txt"]
    assert names(str(tmp_path / "deep"), "deep/../a.txt") == ["deep/c.txt", "a.txt"]


@pytest.mark.parametrize("entry", ["missing.txt", "*.md", "empty"])
def test_entry_that_matches_nothing_is_named(tmp_path, entry):
    (tmp_path / "empty").mkdir()
    message = r"valid entry '.*' must match .* none .*start at /.*; correct the name$"
    with pytest.raises(ValueError, match=message):
        find_files([entry], tmp_path, option="valid")


def test_text_is_read_as_it_is_apart_from_a_byte_order_mark(tmp_path):
    text = "Zeile\r\nzwei \u2603\n\n"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert read(tmp_path / "a.txt") == read(tmp_path / "a.txt.gz") == [text]


def test_records_are_documents_and_empty_ones_are_left_out(tmp_path):
    lines = [{"body": "one"}, {"body": ""}, {"body": "zwei\n", "id": 3}]
    content = "\n\n".join(json.dumps(line) for line in lines)
    (tmp_path / "a.jsonl").write_text(content)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    assert read(tmp_path / "a.jsonl", text_field="body") == ["one", "zwei\n"]
    assert read(tmp_path / "a.jsonl.gz", text_field="body") == ["one", "zwei\n"]


def test_documents_begin_where_the_expression_matches_at_a_line_start(tmp_path):
    text = " \n = One = \nbody = x\n = = Sub = = \nmore\n = Two = \nend"
    (tmp_path / "a.txt").write_text(text)
    first, second = read(tmp_path / "a.txt", split_on=" = [^=]")
    assert first == text[: text.index(" = Two")]
    assert second == " = Two = \nend"


def test_text_before_the_first_match_is_a_document_if_it_is_more_than_blank():
    assert list(cut_documents("intro\n# a\n# b", "#")) == ["intro\n", "# a\n", "# b"]
    assert list(cut_documents("no heading", "#")) == ["no heading"]
    assert list(cut_documents("# a$\nb", "^# a.$")) == ["# a$\nb"]


@given(st.text("a#\n "), st.sampled_from(["#", "^", "a*", "\n", r"(?<=\n)"]))
def test_cut_documents_put_together_are_the_text(text, split_on):
    assert "".join(cut_documents(text, split_on)) == text


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"abc\0def", r"a\.txt.* must be text, and byte 3 of it is 0x00"),
        (b"ab\n\xff\xfe", r"a\.txt.* byte 3 of it is 0xff, not valid UTF-8 .*leave it out"),
        (b"\xef\xbb\xbfa\xc3", r"a\.txt.* byte 4 of it is 0xc3, not valid UTF-8"),
    ],
)
def test_binary_file_is_named_with_the_offset(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith("gz") else data)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_offset_in_a_record_file_counts_from_the_start_of_the_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl must be text, and byte 24 of it is 0xff"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("data", [b"plain", gzip.compress(b"some text" * 99, mtime=0)[:-9]])
def test_broken_gzip_file_is_named(tmp_path, data):
    (tmp_path / "a.txt.gz").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.txt\.gz must be a whole gzip file"):
        read(tmp_path / "a.txt.gz")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ', r"line 2: .* must be one JSON object a line .*correct"),
        ('["text"]', r"line 2: a record must be a JSON object with the field 'text'"),
        (
            '{"title": "", "body": ""}',
            r"line 2: .*'text', and it has \['body', 'title'\]; set text_",
        ),
        ('{"text": 3}', r"line 2: the field 'text' must be a string, and it is int"),
        (r'{"text": "a\ud800"}', r"line 2: .* character 1 is half of a surrogate pair"),
    ],
)
def test_bad_record_is_named_with_file_and_line(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, " + message):
        read(tmp_path / "a.jsonl")


def test_rows_of_parquet_are_documents_and_null_is_none(tmp_path):
    texts = ["one", None, "", *(f"row {row}" for row in range(300))]
    table = pa.table({"id": list(range(len(texts))), "body": texts})
    parquet.write_table(table, tmp_path / "a.PARQUET", row_group_size=100)
    assert read(tmp_path / "a.PARQUET", text_field="body") == [text for text in texts if text]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_every_type_of_text_column_is_read(tmp_path, kind):
    table = pa.table({"text": pa.array(["one", "two", "one"]).cast(kind)})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["one", "two", "one"]


def test_wrong_column_of_parquet_is_named(tmp_path):
    parquet.write_table(pa.table({"id": [1], "body": ["x"]}), tmp_path / "a.parquet")
    for field, message in (
        (
            "text",
            r"a\.parquet must have the column 'text', and it has \['body', 'id'\]; set text_f",
        ),
        ("id", r"a\.parquet, row 1: the column 'id' must hold strings, and this is int; set text"),
    ):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "a.parquet", text_field=field)


@pytest.mark.parametrize("damage", [slice(0, 0), slice(0, -9), slice(9, None)])
def test_broken_parquet_file_is_named(tmp_path, damage):
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": ["x" * 99]}), file)
    file.write_bytes(file.read_bytes()[damage])
    with pytest.raises(
        ValueError, match=r"a\.parquet must be a whole Parquet file .*write it again"
    ):
        read(file)


def test_parquet_text_that_is_not_unicode_is_named(tmp_path):
    column = pa.array([b"\xff"], pa.binary()).cast(pa.string(), safe=False)
    parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet must be a whole Parquet .*can't decode byte"):
        read(tmp_path / "a.parquet")


def test_missing_parquet_library_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        ValueError, match=r"a\.parquet must .* 'pyarrow', .*pip install 'retnet\[data"
    ):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.parquet"])
def test_vanished_file_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name} .*No such file.*; (bring it back|write it)"):
        read(tmp_path / name)


def test_reading_ends_after_the_document_that_reaches_the_limit(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{"é" * 5}"}}\n' for _ in range(5)))
    files = (tmp_path / "a.jsonl", tmp_path / "missing.txt")
    for max_bytes, number in ((1, 1), (10, 1), (11, 2), (50, 5)):
        assert list(Documents(files, max_bytes=max_bytes)) == ["é" * 5] * number
