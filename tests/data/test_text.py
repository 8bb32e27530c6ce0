"""Documents and their token sequences, against tokenising by hand."""

from __future__ import annotations

import pytest

from splinterp.data import pack_tokens, python_documentation, text_from_datasets, text_from_files
from splinterp.data.text import WIKITEXT_HEADING
from tests.data.tiny_models import letters, word_tokenizer


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
    with pytest.raises(ImportError, match="pip install datasets"):
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


TEMPLATES = [None, "[CLS] $A [SEP]", "[EOS] $A", "$A [EOS]", "[CLS] [CLS] $A [SEP] [SEP]"]


@pytest.mark.parametrize("around", TEMPLATES)
@pytest.mark.parametrize("options", [{}, {"truncation_side": "left"}, {"padding_side": "left"}, {"model_max_length": 5}])
@pytest.mark.parametrize("context", [5, 6, 11, 500])
def test_windows_are_the_text_in_its_order_with_the_tokenizers_special_tokens(around, options, context):
    tokenizer = word_tokenizer("[CLS]" in (around or ""), around, **options)
    documents = [letters(n, seed=n) for n in (50, 1, 0, 7, 14, 200)]
    packed = pack_tokens(tokenizer, documents, context)
    step = context - tokenizer.num_special_tokens_to_add()
    expected = [tokenizer(" ".join(words[a : a + step]))["input_ids"]
                for words in map(str.split, documents) for a in range(0, len(words), step)]  # fmt: skip
    assert packed.ids == expected
    assert all(len(i) == len(s) == len(d) for i, s, d in zip(packed.ids, packed.special, packed.documents, strict=True))
    assert all(len(set(owner)) == 1 for owner in packed.documents)
    stream = pack_tokens(tokenizer, documents, context, across_documents=True)
    one = tokenizer("a")["input_ids"]
    first, last = one[: one.index(tokenizer.vocab["a"])], one[one.index(tokenizer.vocab["a"]) + 1 :]
    for row in stream.ids:
        assert row[: len(first)] == first
        assert row[len(row) - len(last) :] == last
    assert max(map(len, stream.ids)) <= context
    words = [w for row in stream.ids for w in tokenizer.convert_ids_to_tokens(row) if not w.startswith("[")]
    assert " ".join(words) == " ".join(" ".join(documents).split())
    assert stream.n_tokens == packed.n_tokens == 272


def test_settings_inside_the_tokenizer_change_no_window():
    documents = [letters(40), letters(9)]
    expected = pack_tokens(word_tokenizer(True), documents, 8)
    tokenizer = word_tokenizer(True)
    tokenizer.backend_tokenizer.enable_truncation(4, direction="left")
    tokenizer.backend_tokenizer.enable_padding(length=64)
    assert pack_tokens(tokenizer, documents, 8) == expected
    literal = pack_tokens(word_tokenizer(True), ["[CLS] a b [SEP] c"], 5)
    assert literal.ids == [[2, 2, 5, 6, 3], [2, 3, 7, 3]]


def test_what_is_no_text_is_left_out_or_named(monkeypatch):
    def serve(*rows):
        fake = type("datasets", (), {"load_dataset": staticmethod(lambda *_, **__: iter([{"body": r} for r in rows]))})
        monkeypatch.setitem(__import__("sys").modules, "datasets", fake)

    serve(None, "a", "", None, "b c", "\n", "d")
    assert text_from_datasets("some/name", column="body") == ["a", "b c", "d"]
    serve(None, "a", None, "b c", "d")
    assert text_from_datasets("some/name", column="body", limit=2) == ["a", "b c"]
    serve("a", 7)
    with pytest.raises(TypeError, match="column 'body' of some/name holds a int"):
        text_from_datasets("some/name", column="body")
    with pytest.raises(TypeError, match=r"documents.*NoneType"):
        pack_tokens(word_tokenizer(True), ["a", None])


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
