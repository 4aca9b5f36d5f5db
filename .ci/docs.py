"""The README and the plain HTML site.

    python .ci/docs.py readme           README.md (and its pictures) from nbs/index.ipynb
    python .ci/docs.py build [FOLDER]   the site in FOLDER (_docs), links checked, without Quarto
    python .ci/docs.py check            build the site in a temporary folder, only to check it
    python .ci/docs.py films FOLDER     make a finished site move, e.g. one that Quarto built

The build runs nbdev's own processing step on a temporary copy (show_doc, doc links, directives, front matter: what breaks in
practice) and turns its result into plain HTML."""
import html
import os
import posixpath
import re
import shutil
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent))
from check import ROOT, copy_tree
from formulae import with_formulae

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>{title} – geonb</title><link rel="stylesheet" href="{up}styles.css"><link rel="icon" href="data:,">
<style>{pygments}
:root {{ --ink: #1f2937; --soft: #475569; --ground: #fff; --inset: #f8fafc; --line: #e2e8f0; --link: #1d4ed8 }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e2e8f0; --soft: #a9b6c8; --ground: #12161d; --inset: #1b212b; --line: #313a48; --link: #8ab4ff }} main img {{ background: #fff; border-radius: .3rem }} }}
body {{ display: flex; gap: 2rem; margin: 0 auto; max-width: 80rem; padding: 1rem; font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--ground) }}
a {{ color: var(--link) }} main {{ flex: 1; min-width: 0 }} img {{ max-width: 100%; height: auto }}
nav.book {{ flex: 0 0 14rem; font-size: .85rem }} nav.book a {{ display: block; padding: .1rem 0; color: var(--soft); text-decoration: none }} nav.book a:hover {{ text-decoration: underline }}
nav.book a[aria-current] {{ color: var(--ink); font-weight: 600 }} nav.book summary {{ margin-top: .5rem; font-weight: 600; cursor: pointer }} nav.book details > *:not(summary) {{ margin-left: .8rem }} nav.book > a {{ font-weight: 600 }}
nav.turn {{ display: flex; justify-content: space-between; gap: 1rem; margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line) }}
pre {{ overflow-x: auto; background: var(--inset); padding: .6rem .8rem; border-radius: .3rem }} .highlight {{ background: none }} code {{ background: var(--inset) }} blockquote {{ margin-left: 0; padding-left: 1rem; border-left: 3px solid var(--line) }}
table {{ border-collapse: collapse; display: block; overflow-x: auto }} td, th {{ border: 1px solid var(--line); padding: .2rem .5rem }}
math {{ font-size: 1.08em }} .formula {{ display: block; margin: 1rem 0; overflow-x: auto; overflow-y: hidden }}
.anchor-link, .jp-InputPrompt, .jp-OutputPrompt, .prompt {{ display: none }}
@media (max-width: 52rem) {{ body {{ flex-direction: column-reverse }} nav.book {{ flex: none }} }}
</style></head><body><nav class="book" aria-label="all pages">{nav}</nav><main>{body}{turn}</main></body></html>
"""


# --- README

def readme(nbs):
    "README text and its pictures {path in the repository: bytes} from the stored outputs of nbs/index.ipynb."
    import nbformat
    from nbconvert import MarkdownExporter
    nb = nbformat.read(Path(nbs)/"index.ipynb", 4)
    nb.metadata["language_info"] = {"name": "python"}
    directives = lambda c: {m.replace(" ", "") for m in re.findall(r"^#\|\s*(.+?)\s*$", c.source, re.M)} if c.cell_type == "code" else set()
    nb.cells = [c for c in nb.cells if c.cell_type != "raw" and not directives(c) & {"hide", "include:false"}]
    for c in nb.cells:
        if "echo:false" in directives(c): c.metadata["transient"] = {"remove_source": True}
        elif c.cell_type == "code": c.source = re.sub(r"^#\|.*\n", "", c.source, flags=re.M)
    text, resources = MarkdownExporter().from_notebook_node(nb, {"output_files_dir": "images", "unique_key": "index"})
    pictures = {"nbs/"+k: v for k, v in resources["outputs"].items()}
    text = re.sub(r"(\]\()(?!\w+:|#|/)([^)\s]+)", lambda m: m[1]+posixpath.normpath("nbs/"+m[2]), text)   # links are relative to nbs/ there
    text = re.sub(r"^ *\n!\[png\](\(\S+\))\n *$", r"![figure]\1", text, flags=re.M)
    return "<!-- made from nbs/index.ipynb by `make readme`; edit that -->\n\n"+re.sub(r"\n{3,}", "\n\n", text).strip()+"\n", pictures


def write_readme():
    text, pictures = readme(ROOT/"nbs")
    for old in (ROOT/"nbs"/"images").glob("index_*.png"): old.unlink()
    for path, data in pictures.items():
        (ROOT/path).parent.mkdir(exist_ok=True); (ROOT/path).write_bytes(data)
    (ROOT/"README.md").write_text(text, encoding="utf-8")


# --- site

def process(tree):
    "nbdev's half of the docs build in the project folder `tree`; the folder of processed notebooks."
    os.chdir(tree)                                   # nbdev finds its settings, and its workers theirs, from the working directory
    sys.path.insert(0, str(tree))                    # the copy's own geonb, with the index that is built next
    import nbdev.doclinks
    from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
    from nbdev.serve import proc_nbs
    refresh_quarto_yml(); nbdev.doclinks._build_modidx(); nbdev_sidebar.__wrapped__()
    return Path(proc_nbs(n_workers=2, force=True))


def front_matter(nb):
    "Take nbdev's front matter cell out of a processed notebook and return what it says."
    import yaml
    meta = {}
    for c in [c for c in nb.cells if c.cell_type == "raw" and c.source.strip().startswith("---")]:
        meta.update(yaml.safe_load(c.source.strip().strip("-")) or {}); nb.cells.remove(c)
    return meta


def pages(proc):
    "[(path of the page, title, subtitle, notebook)] for every processed notebook, in the order of the site's folders."
    import nbformat
    found = []
    for p in sorted(proc.rglob("*.ipynb"), key=lambda p: (len(p.relative_to(proc).parts), p)):
        nb = nbformat.read(p, 4)
        meta = front_matter(nb)
        found.append((p, p.with_name(meta.get("output-file", p.stem+".html")).relative_to(proc).as_posix(), str(meta.get("title", p.stem)), str(meta.get("description", "")), nb))
    return found


def outline(root):
    "The book: what _quarto.yml says of the sidebar, as [notebook below nbs/ or (section, [...])], patterns resolved, without what is not there."
    import yaml
    nbs = Path(root)/"nbs"
    def resolved(entries):
        out = []
        for e in [entries] if isinstance(entries, str) else entries:
            if isinstance(e, str): out += [p.relative_to(nbs).as_posix() for p in sorted(nbs.glob(e)) if ".ipynb_checkpoints" not in p.parts]
            elif inner := resolved(e["contents"]): out.append((e["section"], inner))
        return out
    return resolved(yaml.safe_load((Path(root)/"_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"])


def leaves(book):
    "Notebooks of the book, in reading order."
    return [n for e in book for n in (leaves(e[1]) if isinstance(e, tuple) else [e])]


def navigation(book, known, here):
    "The book as links seen from page `here`, its own section open; `known`: notebook -> (page, title)."
    up = "../"*here.count("/")
    def link(n): page, title = known[n]; return f'<a href="{up}{page}"{" aria-current=page" if page == here else ""}>{html.escape(title)}</a>'
    def part(e):
        if not isinstance(e, tuple): return link(e) if e in known else ""
        return f'<details{" open" if here in {known[n][0] for n in leaves(e[1]) if n in known} else ""}><summary>{html.escape(e[0])}</summary>{"".join(map(part, e[1]))}</details>'
    return "\n".join(map(part, book))


def turning(book, known, here):
    "Links to the page before and the page after."
    order, up = [known[n] for n in leaves(book) if n in known], "../"*here.count("/")
    i = next((i for i, (page, _) in enumerate(order) if page == here), None)
    if i is None: return ""
    one = lambda j, text: f'<a href="{up}{order[j][0]}">{text.format(html.escape(order[j][1]))}</a>' if 0 <= j < len(order) else "<span></span>"
    return f'<nav class="turn" aria-label="pages before and after">{one(i-1, "← {}")}{one(i+1, "{} →")}</nav>'


def to_html(found, proc, out, book):
    "Write every page under `out`, links to notebooks turned into links to pages, TeX into MathML; the formulae that could not be read."
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter
    made = {p.relative_to(proc).as_posix(): page for p, page, *_ in found}
    known = {p.relative_to(proc).as_posix(): (page, title) for p, page, title, *_ in found}
    light, dark = (HtmlFormatter(style=s).get_style_defs(".highlight") for s in ("default", "github-dark"))
    unread = []
    for p, page, title, subtitle, nb in found:
        for c in nb.cells:                           # Quarto's fences mean nothing here
            if c.cell_type == "markdown": c.source = re.sub(r'^:{3,}.*$|\{target="_blank"[^}]*\}', "", c.source, flags=re.M)
            elif c.cell_type == "code":
                if re.search(r"^#\|\s*echo:\s*false", c.source, re.M): c.metadata["transient"] = {"remove_source": True}
                c.source = re.sub(r"^#\|.*\n?", "", c.source, flags=re.M)
            for o in c.get("outputs", []):           # nor do its attributes behind a link
                for kind, text in o.get("data", {}).items():
                    if kind == "text/markdown": o["data"][kind] = re.sub(r'\{target="_blank"[^}]*\}', "", text)
        body = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True).from_notebook_node(nb)[0]
        body = re.sub(r'(<h[1-6] id="|href="#)([^"]+)"', lambda m: f'{m[1]}{m[2].lower()}"', body)   # as Quarto writes anchors; nbdev links to those
        here = posixpath.dirname(p.relative_to(proc).as_posix())
        def relink(m):
            target, _, anchor = m[1].partition("#")
            page_of = made.get(posixpath.normpath(posixpath.join(here, unquote(target))))
            return f'href="{posixpath.relpath(page_of, here or ".")}{"#"+anchor if anchor else ""}"' if page_of else m[0]
        body = re.sub(r'href="([^"]+\.ipynb(?:#[^"]*)?)"', relink, body)
        head = f"<h1>{html.escape(title)}</h1>\n<p><em>{html.escape(subtitle)}</em></p>\n"
        body, wrong = with_formulae(head+body); unread += [f"{page}: {w}" for w in wrong]
        (out/page).parent.mkdir(parents=True, exist_ok=True)
        (out/page).write_text(PAGE.format(title=html.escape(title), up="../"*page.count("/"), nav=navigation(book, known, page), turn=turning(book, known, page), body=body,
                                          pygments=light+"\n@media (prefers-color-scheme: dark) {"+dark+"}"), encoding="utf-8")
    return unread


class Links(HTMLParser):
    "Targets (href, src) and anchors (id, name) of a page."
    def __init__(self): super().__init__(); self.targets, self.anchors = [], set()
    def handle_starttag(self, tag, attrs):
        d = dict(attrs)
        self.anchors |= {unquote(d[k]) for k in ("id", "name") if d.get(k)}
        if tag in ("a", "img", "script", "link"): self.targets += [d[k] for k in ("href", "src") if d.get(k)]


def broken_links(site, home=""):
    "Links of the pages under `site` that lead nowhere; `home` is the address the site will have."
    parsed = {}
    for f in sorted(Path(site).rglob("*.html")):
        (one := Links()).feed(f.read_text(encoding="utf-8")); parsed[f.relative_to(site).as_posix()] = one
    bad = []
    for page, one in parsed.items():
        for target in one.targets:
            inside = bool(home) and (target == home or target.startswith((home+"/", home+"#")))
            url = urlsplit(target[len(home):].lstrip("/") if inside else target)
            if url.scheme or url.netloc or target.startswith("//"): continue
            base = "" if inside else posixpath.dirname(page)
            path = posixpath.normpath(posixpath.join(base, unquote(url.path))) if url.path else ("index.html" if inside else page)
            if not (Path(site)/path).is_file(): bad.append(f"{page}: {target} (no such file)")
            elif url.fragment and path in parsed and unquote(url.fragment) not in parsed[path].anchors: bad.append(f"{page}: {target} (no such place on that page)")
    return bad


def build(out, root=ROOT):
    "Build the plain site of the project `root` in `out`; the broken links."
    from configparser import ConfigParser
    cp = ConfigParser(delimiters=["="]); cp.read(Path(root)/"settings.ini", encoding="utf-8"); cfg = cp["DEFAULT"]
    out, back = Path(out).resolve(), os.getcwd()
    with tempfile.TemporaryDirectory(prefix="geonb-") as tmp:
        try:
            proc = process(copy_tree(Path(root), Path(tmp)/"tree"))
            shutil.rmtree(out, ignore_errors=True); out.mkdir(parents=True)
            for f in proc.rglob("*"):
                if f.is_file() and f.suffix not in (".ipynb", ".yml", ".py"):
                    (to := out/f.relative_to(proc)).parent.mkdir(parents=True, exist_ok=True); shutil.copy2(f, to)
            found = pages(proc)
            missing = [f"{p.relative_to(tmp)} gave no page" for p in (Path(tmp)/"tree"/"nbs").rglob("*.ipynb") if not (proc/p.relative_to(Path(tmp)/"tree"/"nbs")).exists()]
            book = outline(Path(tmp)/"tree"); placed = leaves(book)
            missing += [f"nbs/{n} stands in no section of _quarto.yml" for p, *_ in found if (n := p.relative_to(proc).as_posix()) not in placed]
            missing += to_html(found, proc, out, book)
            from geonb.core.errors import GeonbError
            from geonb.explorers.pages import publish
            try: publish(out)
            except GeonbError as e: missing.append(str(e))
        finally: os.chdir(back); sys.path[:] = [p for p in sys.path if not p.startswith(tmp)]
    return missing + broken_links(out, cfg["doc_host"]+cfg["doc_baseurl"])


def main(what="", folder="_docs"):
    if what == "readme": return write_readme()
    if what == "films":
        from geonb.explorers.pages import publish
        return print(*(f"{name}: {size/1e6:.1f} MB" for name, size in publish(folder).items()), sep="\n")
    if what not in ("build", "check"): sys.exit(__doc__)
    with tempfile.TemporaryDirectory(prefix="geonb-") as tmp:
        out = Path(folder) if what == "build" else Path(tmp)/"site"
        bad = build(out)
        if bad: sys.exit("docs: broken\n  "+"\n  ".join(bad))
        print(f"docs: {len(list(out.rglob('*.html')))} pages, no broken link"+(f"; open {out}/index.html" if what == "build" else ""))


if __name__ == "__main__": main(*sys.argv[1:3])
