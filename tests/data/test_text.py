"""Documents and their token sequences, against tokenising by hand."""

from __future__ import annotations

import pytest

from splinterp.data import pack_tokens, python_documentation, text_from_datasets, text_from_files
from splinterp.data.text import WIKITEXT_HEADING
from tests.data.tiny_models import word_tokenizer


def test_files_folders_and_headings(tmp_path):
    (tmp_path / "b.txt").write_text(" = Two = \n text\n = = Part = = \n more\n = Three = \n end\n")
    (tmp_path / "a.txt").write_text("zero")
    (tmp_path / "c.txt").write_text("  \n")
    assert [d[:8] for d in text_from_files(tmp_path)] == ["zero", " = Two ="]
    parts = text_from_files([tmp_path / "a.txt", tmp_path / "b.txt"], heading=WIKITEXT_HEADING)
    assert parts == ["zero", " = Two = \n text\n = = Part = = \n more\n", " = Three = \n end\n"]
    with pytest.raises(ValueError, match="holds no text"):
        text_from_files(tmp_path / "c.txt")
    with pytest.raises(FileNotFoundError):
        text_from_files(tmp_path / "d.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \*.txt"):
        text_from_files(tmp_path / "empty")


def test_the_embedded_text_is_prose():
    documents = python_documentation()
    assert len(documents) > 50
    assert sum(map(len, documents)) > 300_000
    assert documents == python_documentation()


def test_datasets_library_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match=r"splinterp\[datasets\]"):
        text_from_datasets("anything")


def test_rows_of_a_data_set_are_documents(monkeypatch):
    class Fake:
        @staticmethod
        def load_dataset(name, split, streaming, **options):
            assert (name, split, streaming, options) == ("some/name", "train", True, {"revision": "x"})
            return iter([{"text": "a"}, {"text": " "}, {"text": "b"}, {"text": "c"}])

    monkeypatch.setitem(__import__("sys").modules, "datasets", Fake)
    assert text_from_datasets("some/name", limit=2, revision="x") == ["a", "b"]
    with pytest.raises(KeyError, match="no column 'body'"):
        text_from_datasets("some/name", column="body", limit=2, revision="x")


def test_sequences_hold_one_document_each_and_all_of_it():
    tokenizer = word_tokenizer(special=True)
    documents = ["a b c d e f g", "", "h", "a b c"]
    packed = pack_tokens(tokenizer, documents, context=5)
    words = [[w for w, s in zip(tokenizer.convert_ids_to_tokens(ids), special, strict=True) if not s]
             for ids, special in zip(packed.ids, packed.special, strict=True)]  # fmt: skip
    assert words == [["a", "b", "c"], ["d", "e", "f"], ["g"], ["h"], ["a", "b", "c"]]
    assert [row[0] for row in packed.documents] == [0, 0, 0, 2, 3]
    assert all(ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id for ids in packed.ids)
    assert (len(packed), packed.n_tokens) == (5, 11)
    assert packed.take(1, 3).ids == packed.ids[1:3]


def test_crossing_documents_is_asked_for_and_marked():
    tokenizer = word_tokenizer(special=False)
    packed = pack_tokens(tokenizer, ["a b c", "d e"], context=4, across_documents=True)
    words = [tokenizer.convert_ids_to_tokens(ids) for ids in packed.ids]
    assert words == [["a", "b", "c", "[EOS]"], ["d", "e", "[EOS]"]]
    assert packed.documents == [[0, 0, 0, 0], [1, 1, 1]]
    assert packed.special == [[0, 0, 0, 1], [0, 0, 1]]
    within = pack_tokens(tokenizer, ["a b c", "d e"], context=4)
    assert [len(ids) for ids in within.ids] == [3, 2]


def test_bad_input_is_named():
    tokenizer = word_tokenizer(special=True)
    with pytest.raises(TypeError, match=r"pass a list of documents"):
        pack_tokens(tokenizer, "one string")
    with pytest.raises(ValueError, match="no documents"):
        pack_tokens(tokenizer, [])
    with pytest.raises(ValueError, match="context=2 must be at least 3"):
        pack_tokens(tokenizer, ["a"], context=2)
    with pytest.raises(TypeError, match="not a fast tokenizer"):
        pack_tokens(object(), ["a"])
    tokenizer.eos_token = tokenizer.sep_token = None
    with pytest.raises(ValueError, match="no end-of-text token"):
        pack_tokens(tokenizer, ["a"], across_documents=True)
