"""What every claims notebook has to stand: its seed is a parameter, its tests can come out either way, its stored table is theirs.

The tests are in test_*_claims*.py, which say what each claim's test is fed with.
"""
import ast
import json

from conftest import ROOT


def source(cell): return "".join(cell["source"])


class Claims:
    "A claims notebook by its name; nothing of it is executed yet."
    def __init__(self, name):
        self.path = ROOT/"nbs"/"claims"/f"{name}.ipynb"
        self.cells = [c for c in json.loads(self.path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]

    def definitions(self, *names):
        "The notebook's imports, its claims with their tests, and the functions and values `names`; nothing is simulated or trained."
        found = {}
        for cell in self.cells:
            for node in ast.parse(source(cell)).body:
                wanted = isinstance(node, (ast.Import, ast.ImportFrom)) or isinstance(node, ast.FunctionDef) and (node.name in ("claim", *names) or node.decorator_list and ast.unparse(node.decorator_list[0]).startswith("claim("))
                wanted = wanted or isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("(claims, figures, shown)", *names)
                if wanted: exec(compile(ast.Module([node], []), str(self.path), "exec"), found)
        return found

    def run(self, seed):
        "Every cell, with another seed; the namespace it leaves."
        found = {}
        for cell in self.cells:
            exec(compile(source(cell), str(self.path), "exec"), found)
            if "parameters" in cell["metadata"].get("tags", []): found["seed"] = seed
        return found

    def seed_is_the_parameter(self):
        tagged = [source(c) for c in self.cells if "parameters" in c["metadata"].get("tags", [])]
        assert len(tagged) == 1 and ast.literal_eval(ast.parse(tagged[0]).body[0].value) == 0 and tagged[0].startswith("seed = ")

    def could_hold_and_could_fail(self, either):
        claims = self.definitions()["claims"]
        assert claims.keys() == either.keys()
        for name, (yes, no) in either.items(): assert (claims[name][1](**yes), claims[name][1](**no)) == (True, False), name

    def saved_verdicts_are_those_of_the_tests(self, true):
        "The table of the stored run: one row for each claim, and the verdicts that another seed is held to."
        claims = self.definitions()["claims"]
        tables = ["".join(o["data"]["text/markdown"]) for c in self.cells for o in c["outputs"] if "text/markdown" in o.get("data", {})]
        rows = [[e.strip() for e in line.strip("|").split(" | ")] for line in tables[-1].splitlines()[2:]]
        assert [r[0] for r in rows] == [text for text, _ in claims.values()]
        assert {name: r[-1] for name, r in zip(claims, rows)} == {name: "yes" if name in true else "no" for name in claims}
