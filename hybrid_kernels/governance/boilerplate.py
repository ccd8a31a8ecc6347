"""What belongs to a web page, not to its text: markup, stock phrases, links."""

from __future__ import annotations

import re

# C4's list (arXiv 1910.10683, §2.2) without phrases of ordinary sentences, and the commonest of it in other languages.
# fmt: off
_PHRASES = (
    "lorem ipsum", "enable javascript", "javascript is disabled", "404 not found", "page not found",
    "click here to", "subscribe to our newsletter", "use cookies", "uses cookies", "using cookies",
    "cookie policy", "cookies policy", "politique de cookies", "política de cookies", "politica de cookies",
    "cookie-richtlinie", "политику cookie", "политика cookie", "политики cookie",
    "использования файлов cookie", "политика за бисквитки", "πολιτική cookies", "çerez politikası",
    "chính sách cookie", "sera ya vidakuzi", "कुकी नीति", "นโยบายคุกกี้", "سياسة ملفات تعريف الارتباط",
    "سياسة تعريف الارتباط", "سياسة الكوكيز", "سياسة ملفات الكوكيز", "کوکی پالیسی", "cookie政策", "cookie 政策",
    "all rights reserved", "tous droits réservés", "todos los derechos reservados",
    "alle rechte vorbehalten", "все права защищены", "всички права запазени",
    "με επιφύλαξη παντός δικαιώματος", "tüm hakları saklıdır", "haki zote zimehifadhiwa",
    "bảo lưu mọi quyền", "सर्वाधिकार सुरक्षित", "สงวนลิขสิทธิ์", "جميع الحقوق محفوظة", "جملہ حقوق محفوظ",
    "版权所有", "版權所有", "保留所有权利", "保留所有權利",
)
# fmt: on
_MARKUP = re.compile(
    r"</?(?:a|b|body|br|button|center|code|div|em|font|form|h[1-6]|head|hr|html|i|iframe|img|input|li|link|meta|"
    r"ol|option|p|pre|script|section|span|strong|style|table|tbody|td|th|title|tr|u|ul)(?:\s[^<>]*)?/?>"
    r"|<!--|&(?:nbsp|lt|gt|quot|[a-z]+(?:acute|grave|uml|circ|cedil|tilde)|[lr][ds]quo|[mn]dash|hellip"
    r"|#\d+|#x[0-9a-f]+);|\bfunction\s*\w*\([^()]*\)\s*{|\bvar\s+\w+\s*=|[{};]\s*}|\[/?(?:url|img|quote|b|i)(?:=[^\]]*)?\]",
    re.IGNORECASE,
)
_MARKUP_SIGNS = re.compile(r"[<&}\[]|[fF]unction|[vV]ar\s", re.ASCII)
_LINK = re.compile(r"(?:https?://|www\.)\S+|\b[\w.+-]+@[\w-]+\.[\w.-]+", re.IGNORECASE)


def phrase(text: str) -> str | None:
    """The first stock phrase of web pages that `text` has."""
    lower = text.lower()
    return next((phrase for phrase in _PHRASES if phrase in lower), None)


def markup(text: str) -> str | None:
    """The first piece of HTML, BBCode or script code in `text`."""
    if not _MARKUP_SIGNS.search(text):
        return None
    found = _MARKUP.search(text)
    return found.group() if found else None


def linked(text: str) -> int:
    """Characters of `text` that are in URLs and e-mail addresses."""
    if "://" not in text and "@" not in text and "www." not in text.lower():
        return 0
    return sum(len(found.group()) for found in _LINK.finditer(text))
