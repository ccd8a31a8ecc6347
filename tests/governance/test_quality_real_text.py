"""All quality rules together on clean text, with bounds from that text: what they reject falsely."""

import pytest

from tests.governance.quality_support import FLORES, flores, judged, needs_data, ntrex, rejected


@needs_data
@pytest.mark.parametrize("language", FLORES)
@pytest.mark.parametrize("corpus", [flores, ntrex])
def test_clean_text_is_kept(language, corpus):
    texts = corpus(language)
    found = judged(texts, languages=[language], from_data=True)
    assert len(rejected(found)) <= 0.005 * len(texts), [(o.reason, o.detail) for o in found]


@needs_data
def test_clean_text_of_all_languages_together():
    """With no language known, each is held against the policy's own limits."""
    texts = [text for language in FLORES for text in flores(language)[::4]]
    found = judged(texts, languages=[None], from_data=True)
    assert len(rejected(found)) <= 0.002 * len(texts), [(o.reason, o.detail) for o in found]
