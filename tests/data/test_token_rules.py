"""Which tokens are taken: by hand on small models, in memory and in stores, at one place and at several."""

from __future__ import annotations

import pytest
import torch

from splinterp.data import ActivationStore, TokenRules, extract_activations, extract_places, pack_tokens
from splinterp.data.language_model import LanguageModel
from tests.data.tiny_models import BUILDERS, WORDS, letters, tiny, word_tokenizer

DOCUMENTS = [letters(n) for n in (5, 30, 1, 12, 17, 3, 25)]


def taken(rules, lm=None, **options):
    return extract_activations(lm or tiny("BERT"), DOCUMENTS, 2, context=12, rules=rules, **options)


def test_first_places_and_listed_tokens_are_left_out_and_counted():
    lm = tiny("BERT")
    whole = taken(None, lm)
    with_special = taken(TokenRules(keep_special=True), lm)
    n_sequences = int(whole.tokens[:, 2].max()) + 1
    assert with_special.left_out == {}
    assert whole.left_out == {"special": 2 * n_sequences}
    without = (WORDS.index("a"), WORDS.index("c"))
    found = taken(TokenRules(skip_first=3, without=without), lm)  # [CLS] and two letters of each sequence
    place = torch.cat([torch.arange(1, int((whole.tokens[:, 2] == i).sum()) + 1) for i in range(n_sequences)])
    listed = torch.isin(whole.tokens[:, 0], torch.tensor(without))
    kept = (place >= 3) & ~listed
    assert torch.equal(found.tokens, whole.tokens[kept])
    torch.testing.assert_close(found.x, whole.x[kept])
    first = int((place < 3).sum())
    assert found.left_out == {"special": 2 * n_sequences, "first": first, "without": int(((place >= 3) & listed).sum())}


@pytest.mark.parametrize("outliers", ["leave_out", "cap"])
@pytest.mark.parametrize("limit", [None, 40])
def test_tokens_of_outlying_norm_are_left_out_or_capped(outliers, limit, tmp_path, monkeypatch):
    monkeypatch.setattr("splinterp.data.extract.BATCHES_A_SHARD", 1)
    lm = tiny("GPT-2")
    rare = lm.tokenizer.convert_tokens_to_ids("b")
    with torch.no_grad():
        lm.model.wte.weight[rare] *= 300
    options = {"batch_tokens": 36, "max_tokens": limit}
    whole = taken(None, lm, batch_tokens=36)
    norms = whole.x.norm(dim=1)
    rules = TokenRules(outliers=outliers, outlier_norm=4.0)
    found = taken(rules, lm, **options)
    store = taken(rules, lm, folder=tmp_path, **options)
    assert store.left_out == found.left_out
    assert torch.equal(store[:], found.x)
    long = norms > 20 * norms.median()
    assert 0 < int(long.sum()) < len(long) / 4
    if outliers == "leave_out":
        assert torch.equal(found.tokens, whole.tokens[~long][:limit])
        torch.testing.assert_close(found.x, whole.x[~long][:limit])
        assert limit is not None or found.left_out == {"outliers": int(long.sum())}
    else:
        assert torch.equal(found.tokens, whole.tokens[:limit])
        torch.testing.assert_close(found.x[~long[:limit]], whole.x[:limit][~long[:limit]])
        assert float(found.x.norm(dim=1).max()) <= 4.01 * float(norms.median()) * 1.5
        direction = torch.cosine_similarity(found.x, whole.x[:limit], dim=1)
        torch.testing.assert_close(direction, torch.ones_like(direction))
        assert limit is not None or found.left_out == {"outliers capped": int(long.sum())}


def test_several_places_come_from_one_pass_and_go_on_where_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr("splinterp.data.extract.BATCHES_A_SHARD", 1)
    lm = tiny("GPT-2")
    places = [(1, "residual"), (3, "mlp"), (2, "attention"), (2, "h.{layer}.mlp.c_fc")]
    options = {"context": 12, "batch_tokens": 36, "max_tokens": 60}
    alone = {place: extract_activations(lm, DOCUMENTS, *place, **options) for place in places}
    passes = []
    handle = lm.model.register_forward_pre_hook(lambda *_: passes.append(1))
    extract_activations(lm, DOCUMENTS, 1, **options)
    n = len(passes)
    found = extract_places(lm, DOCUMENTS, places, **options)
    handle.remove()
    assert len(passes) == 2 * n
    assert alone[places[-1]].x.shape[1] == 64
    for place in places:
        torch.testing.assert_close(found[place].x, alone[place].x)
        assert torch.equal(found[place].tokens, alone[place].tokens)
    extract_activations(lm, DOCUMENTS, 1, folder=tmp_path / "1-residual", **options)  # one is there already
    hidden, calls = lm.hidden_at, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return hidden(*arguments)

    lm.hidden_at = failing
    with pytest.raises(KeyboardInterrupt):
        extract_places(lm, DOCUMENTS, places, folder=tmp_path, **options)
    lm.hidden_at = hidden
    stores = extract_places(lm, DOCUMENTS, places, folder=tmp_path, **options)
    for place, store in stores.items():
        assert isinstance(store, ActivationStore)
        torch.testing.assert_close(store[:], alone[place].x)
        assert (store.about["layer"], store.about["site"]) == place
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1-residual", "2-attention", "2-h.2.mlp.c_fc", "3-mlp"]


def test_rules_are_told_by_a_store_and_others_are_refused(tmp_path):
    plain = taken(None, folder=tmp_path / "a")
    assert "rules" not in plain.about
    store = taken(TokenRules(skip_first=2), folder=tmp_path / "b")
    assert store.about["rules"] == {"skip_first": 2}
    with pytest.raises(ValueError, match="holds other activations"):
        taken(TokenRules(skip_first=1), folder=tmp_path / "b")
    with pytest.raises(ValueError, match=r"pass TokenRules\(keep_special=True"):
        taken(TokenRules(), keep_special=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip_first": -1}, "skip_first"),
        ({"outliers": "drop"}, "known: 'keep', 'leave_out', 'cap'"),
        ({"outlier_norm": 0.5}, "outlier_norm"),
        ({"without": ("a",)}, "without"),
    ],
)
def test_bad_rules_are_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        TokenRules(**options)


@pytest.mark.parametrize("special", [False, True])
def test_a_beginning_of_text_is_put_before_each_sequence_where_it_is_asked_for(special):
    tokenizer = word_tokenizer(special, bos_token="[EOS]")
    begin = tokenizer.bos_token_id
    as_it_does, begun, bare = (pack_tokens(tokenizer, DOCUMENTS, 8, bos=bos) for bos in (None, True, False))
    assert all(row[0] == begin for row in begun.ids)
    assert all(row[0] == 1 for row in begun.special)
    assert begun.n_tokens == bare.n_tokens == as_it_does.n_tokens
    assert all(len(row) <= 8 for row in begun.ids)
    assert bare.ids == as_it_does.ids
    around = word_tokenizer(False, around="[EOS] $A", bos_token="[EOS]")
    assert pack_tokens(around, DOCUMENTS, 8).ids == pack_tokens(around, DOCUMENTS, 8, bos=True).ids
    assert not any(begin in row for row in pack_tokens(around, DOCUMENTS, 8, bos=False).ids)
    with pytest.raises(ValueError, match="no beginning-of-text token"):
        pack_tokens(word_tokenizer(True), DOCUMENTS, 8, bos=True)
    with pytest.raises(ValueError, match="context"):
        pack_tokens(tokenizer, DOCUMENTS, 1 + 2 * special, bos=True)


def test_an_unknown_word_is_text():
    tokenizer = word_tokenizer(True)
    packed = pack_tokens(tokenizer, ["a ? b"], 8)
    assert packed.n_tokens == 3
    assert packed.special == [[1, 0, 0, 0, 1]]
    both = word_tokenizer(False)
    both.unk_token = both.eos_token = "[EOS]"
    assert pack_tokens(both, ["a b"], 8, across_documents=True).special == [[0, 0, 1]]


def test_any_module_is_a_site_and_others_are_refused_with_what_is_near():
    lm = tiny("GPT-2")
    found = extract_activations(lm, DOCUMENTS, 2, "h.1.mlp.act", context=12)
    assert found.x.shape[1] == 64
    assert float(found.x.min()) >= -0.18  # of a GELU
    with pytest.raises(ValueError, match=r"no module 'h.1.mlp.akt'; near to it: h.1.mlp.act"):
        extract_activations(lm, DOCUMENTS, 2, "h.1.mlp.akt", context=12)
    with pytest.raises(ValueError, match="layer=True must be a whole number: for several, pass places to extract_places"):
        lm.module(True, "residual")
    with pytest.raises(ValueError, match="each once"):
        extract_places(lm, DOCUMENTS, [(1, "mlp"), (1, "mlp")])


def test_blocks_are_named_where_they_are_not_found():
    model = BUILDERS["GPT-2"]()
    model.layers_of_its_own = model.h
    del model._modules["h"]
    with pytest.raises(ValueError, match=r"blocks=NAME \(it has layers_of_its_own"):
        LanguageModel(model, word_tokenizer(False))
    with pytest.raises(ValueError, match="blocks='nothing' is no list of modules"):
        LanguageModel(model, word_tokenizer(False), blocks="nothing")
    assert LanguageModel(model, word_tokenizer(False), blocks="layers_of_its_own").n_layers == 3
