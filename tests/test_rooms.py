"""The picture of the rooms is of today's folders and imports, and no import in it goes up."""

from pathlib import Path

from PIL import Image

from scripts import load_script

ROOT = Path(__file__).resolve().parent.parent


def test_the_picture_of_the_rooms(tmp_path: Path) -> None:
    rooms = load_script("docs/draw_rooms.py")
    for upper, lower in rooms.graph():
        assert rooms.FLOORS.index(upper) > rooms.FLOORS.index(lower)
    with Image.open(ROOT / "docs" / "images" / "rooms.png") as picture:
        assert picture.info["Description"] == rooms.content(), "python docs/draw_rooms.py draws it anew"

    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "__init__.py").write_text('"""Small things."""\n')
    (tmp_path / "models" / "tiny" / "a.py").write_text("from ... import _b\nfrom ...envs import c\n")
    assert rooms.graph(tmp_path) == {("models", "root"), ("models", "envs")}
    assert rooms.folders(tmp_path)["models"] == {"models/tiny": "Small things."}
    rooms.draw(tmp_path / "out" / "rooms.png", tmp_path)
    with Image.open(tmp_path / "out" / "rooms.png") as picture:
        assert picture.size[0] > 500
