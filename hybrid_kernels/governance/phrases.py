"""Phrases and patterns that no text is made of but its web page is."""

from __future__ import annotations

import re

LINK = re.compile(r"(?:https?://|www\.)\S+|\b[\w.+-]+@[\w-]+\.[\w.-]+", re.IGNORECASE)
MARKUP = re.compile(
    r"</?(?:a|b|body|br|button|center|code|div|em|font|form|h[1-6]|head|hr|html|i|iframe|img|input|li|link|meta|"
    r"ol|option|p|pre|script|section|span|strong|style|table|tbody|td|th|title|tr|u|ul)(?:\s[^<>]*)?/?>"
    r"|<!--|&(?:nbsp|lt|gt|quot|#\d+|#x[0-9a-f]+);|\bfunction\s*\(|\bvar\s+\w+\s*=|[{};]\s*}",
    re.IGNORECASE,
)
# C4's list without phrases of ordinary sentences, and the two commonest of it in other languages.
BOILERPLATE = re.compile(
    r"lorem ipsum|enable javascript|javascript is disabled|404 not found|page not found|click here to"
    r"|subscribe to our newsletter|(?:use|uses|using) cookies|cookies? policy|politique de cookies"
    r"|pol[íi]tica de cookies|cookie-richtlinie|политик\w* (?:использования )?(?:файлов )?cookie"
    r"|политика за бисквитки"
    r"|πολιτική cookies|çerez politikası|chính sách cookie|sera ya vidakuzi|कुकी नीति|นโยบายคุกกี้"
    r"|سياسة (?:ملفات )?(?:تعريف الارتباط|الكوكيز)|کوکی پالیسی|cookie\s?政策"
    r"|all rights reserved|tous droits réservés|todos los derechos reservados|alle rechte vorbehalten"
    r"|все права защищены|всички права запазени|με επιφύλαξη παντός δικαιώματος|tüm hakları saklıdır"
    r"|haki zote zimehifadhiwa|bảo lưu mọi quyền|सर्वाधिकार सुरक्षित|สงวนลิขสิทธิ์|جميع الحقوق محفوظة"
    r"|جملہ حقوق محفوظ|版权所有|保留所有权利",
    re.IGNORECASE,
)
#: A word four times or more, one behind the other.
WORD_RUN = re.compile(r"\b(\w{2,})(?:\W+\1\b){3,}", re.IGNORECASE)
