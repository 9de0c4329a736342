"""Token ids, texts and special tokens of a byte-level vocabulary like Qwen's."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from vlgenrm_ray.engines.tokens import TokenVocabulary
from vlgenrm_ray.errors import InputError


@pytest.fixture(scope="module")
def vocabulary() -> TokenVocabulary:
    words = ["Yes", "\u0120Yes", "yes", "\u0120YES", "No", "\u0120no", "Yesterday", "\u0120Yes."]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*alphabet, *words])}))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True), AddedToken("<|image_pad|>", special=True)])
    return TokenVocabulary(tokenizer)


def test_all_forms_of_a_word_are_found_and_nothing_else(vocabulary: TokenVocabulary) -> None:
    ids = vocabulary.token_ids(("Yes", "No"))
    assert {vocabulary.text(i) for i in ids["Yes"]} == {"Yes", " Yes", "yes", " YES"}
    assert {vocabulary.text(i) for i in ids["No"]} == {"No", " no"}


def test_a_word_without_a_token_is_named(vocabulary: TokenVocabulary) -> None:
    with pytest.raises(InputError, match="'Maybe'"):
        vocabulary.token_ids(("Maybe",))


@given(text=st.text(alphabet="<|im_end>age_pad x", max_size=60))
def test_prompt_text_cannot_contain_special_tokens(vocabulary: TokenVocabulary, text: str) -> None:
    escaped = vocabulary.escape_special_tokens(text)
    assert "<|im_end|>" not in escaped
    assert "<|image_pad|>" not in escaped
    assert escaped.replace(" ", "") == text.replace(" ", "")


@settings(deadline=1000)
@given(
    spellings=st.lists(st.text("<|a \n", min_size=1, max_size=4), min_size=1, max_size=6, unique=True),
    text=st.text("<|ab \n", max_size=60),
)
@example(spellings=["<"], text="a < b")
@example(spellings=["<", " "], text="a < b")
@example(spellings=[" a"], text=" a a")
@example(spellings=["ab", "a b"], text="ab")
def test_no_text_contains_a_special_token_whatever_its_spelling(spellings: list[str], text: str) -> None:
    """Also one of a single character, which no blank can divide, and one that begins with a blank."""
    tokenizer = Tokenizer(models.WordLevel({}))
    tokenizer.add_special_tokens([AddedToken(spelling, special=True) for spelling in spellings])
    escaped = TokenVocabulary(tokenizer).escape_special_tokens(text)
    assert not any(spelling in escaped for spelling in spellings)
    if not any(spelling in text for spelling in spellings):
        assert escaped == text


def test_a_special_token_of_one_character_becomes_a_blank() -> None:
    tokenizer = Tokenizer(models.WordLevel({}))
    tokenizer.add_special_tokens([AddedToken("<", special=True), AddedToken("<|end|>", special=True)])
    assert TokenVocabulary(tokenizer).escape_special_tokens("a<b |> c") == "a b |> c"


def test_plain_text_is_unchanged(vocabulary: TokenVocabulary) -> None:
    assert vocabulary.escape_special_tokens("a <b> | c") == "a <b> | c"


@given(text=st.text(max_size=20))
def test_pieces_join_to_the_text_even_where_a_character_takes_several_tokens(
    vocabulary: TokenVocabulary, text: str
) -> None:
    byte_of = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    tokens = [byte_of[c] for c in (spelling[0][0] if spelling else "")]
    whole, pieces = vocabulary.split_text(tokens)
    assert whole == text
    assert "".join(pieces) == text
    assert len(pieces) == len(tokens)
