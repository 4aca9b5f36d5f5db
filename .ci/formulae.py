"""Formulae of a page as MathML, which every browser draws by itself: no script, and nothing from elsewhere.

latex2mathml reads the TeX; what browsers need beyond that (MathML Core) is mended here."""
import html
import re
import unicodedata
from xml.etree import ElementTree

WORDS = re.compile(r"\\mathrm\s*\{((?:[A-Za-z0-9 ]|\\_)+)\}")
LETTERS = set("∞∂∇′ℓℏ∅…⋯")   # signs that are set like letters
LIMITS = {"max", "min", "sup", "inf", "lim", "det", "Pr", "arg\u00a0max", "arg\u00a0min"}   # below which an index stands in a display
THIN = dict(lspace="0.167em", rspace="0.167em")
PARTS = re.compile(r"(<(pre|code|script|style|svg|math|textarea)\b.*?</\2>|<!--.*?-->|<[^>]+>)", re.S)   # no formula is in there
MATHS = re.compile(r"(?<!\\)\$\$(?P<block>.+?)(?<!\\)\$\$|(?<![$\\])\$(?P<inline>.+?)(?<![$\\])\$|(?P<env>\\begin\{(?P<name>[a-z]+\*?)\}.+?\\end\{(?P=name)\})", re.S)


def mended(math, display):
    "What browsers read differently from TeX: names of functions, relations, fences, limits."
    for e in math.iter():
        text = e.text or ""
        if e.tag == "mi" and re.fullmatch(r"\.?\d[\d.]*", text): e.tag = "mn"
        elif e.tag == "mi" and len(text) == 1 and unicodedata.category(text) in ("Sm", "Ps", "Pe", "So", "Po") and text not in LETTERS: e.tag = "mo"
        if e.tag == "mo" and text in ("argmax", "argmin"): e.text = text = "arg\u00a0" + text[3:]
        if e.tag in ("mi", "mo") and re.fullmatch("[A-Za-z\u00a0]{2,}", text): e.tag = "mo"; e.attrib.update(dict(lspace=".222em", rspace=".222em") if text == "mod" else THIN)
        if e.tag == "mo" and text in ("|", "‖"): e.attrib.update(lspace="0", rspace="0", **({} if "minsize" in e.attrib else dict(stretchy="false")))
        if e.tag == "mo" and text in tuple("⌊⌋⌈⌉⟨⟩") and "minsize" not in e.attrib: e.set("stretchy", "false")
        if e.tag == "mspace" and (width := {"negativethinmathspace": "-0.167em"}.get(e.get("width"))): e.set("width", width)
    for e in math.iter():   # names first
        if display and e.tag in ("msub", "msubsup") and e[0].tag == "mo" and ((e[0].text or "") in LIMITS or e[0].get("movablelimits") == "true"): e.tag = {"msub": "munder", "msubsup": "munderover"}[e.tag]
    return math


def formula(
    tex: str,         # between the dollars
    display: bool,    # in a line of its own
) -> str:             # <math>…</math>
    "One formula; ValueError where it cannot be read."
    from latex2mathml.converter import convert
    source = WORDS.sub(lambda m: r"\text{" + m[1].replace(r"\_", "_") + "}", tex.strip())
    source = re.sub(r"\\arg\s*\\(max|min)(?![A-Za-z])", r"\\operatorname{arg \1}", source); source = re.sub(r"\\arg(?![A-Za-z])", r"\\operatorname{arg}", source)
    source = re.sub(r"(\\[bB]igg?[lrm]?)\s*\\\|", r"\1‖", source)
    source = re.sub(r"\\mathbf\s*(?:\{(\d)\}|(\d))", lambda m: chr(0x1D7CE + int(m[1] or m[2])), source)
    try: made = ElementTree.fromstring(convert(source, display="block" if display else "inline").replace(' xmlns="http://www.w3.org/1998/Math/MathML"', ""))
    except Exception as e: raise ValueError(f"${tex}$ cannot be read ({type(e).__name__})") from None   # the reader raises its own kinds
    parts = dict(mfrac=2, msub=2, msup=2, munder=2, mover=2, mroot=2, msubsup=3, munderover=3); text = "".join(made.itertext())
    if any(len(e) != parts.get(e.tag, len(e)) for e in made.iter()): raise ValueError(f"${tex}$ cannot be read: something is missing")   # the reader lets a lost brace pass
    if "\\" in text or "$" in text: raise ValueError(f"${tex}$ holds what no browser would draw: {text[:60]}")
    return ElementTree.tostring(mended(made, display), encoding="unicode")


def with_formulae(
    body: str,   # HTML with TeX between dollars
) -> tuple:      # (HTML with MathML, what could not be read)
    "All formulae of a page; code is left alone."
    wrong = []
    def one(m):
        tex, display = html.unescape(m["block"] or m["inline"] or m["env"]), m["inline"] is None
        try: math = formula(tex, display)
        except ValueError as e: wrong.append(str(e)); return m[0]
        return f'<span class="formula">{math}</span>' if display else math
    def words(text):
        if "$" not in text and "\\begin" not in text: return text
        text = MATHS.sub(one, text)
        if not wrong and re.search(r"(?<!\\)\$", re.sub(r"<math.*?</math>", "", text, flags=re.S)): wrong.append(f"a dollar opens no formula: {text.strip()[:80]}")
        return text.replace("\\$", "$")
    pieces, at, out = PARTS.finditer(body), 0, []
    for m in pieces: out += [words(body[at:m.start()]), m[0]]; at = m.end()
    return "".join([*out, words(body[at:])]), wrong
